//! What the API server refuses by the CRDs alone, and what it takes.

use dev_cluster::{ControlPlane, Namespace, Patch};
use modelrelay_operator::api::{ModelRelay, WorkerPool};
use modelrelay_operator::model_relay::build::settings::{self, Given};
use modelrelay_protocol::config::RelayConfig;
use serde_json::{Value, json};

use crate::support::plane;

mod pools;
mod relays;

struct Place {
    plane: &'static ControlPlane,
    namespace: Namespace,
}

impl Place {
    fn new(prefix: &str) -> Option<Self> {
        let plane = plane()?;
        Some(Self { plane, namespace: plane.namespace(prefix).unwrap() })
    }

    fn path(&self, plural: &str) -> String {
        format!("/apis/modelrelay.io/v1alpha1/namespaces/{}/{plural}", self.namespace.name())
    }

    /// Tries to create an object, and returns what the API server made of it.
    fn try_create(&self, kind: Kind, name: &str, spec: &Value) -> Result<Value, String> {
        let object = json!({
            "apiVersion": "modelrelay.io/v1alpha1", "kind": kind.as_str(), "metadata": { "name": name }, "spec": spec,
        });
        // As kubectl asks for: a field that nobody knows is refused.
        let path = format!("{}?fieldValidation=Strict&dryRun=All", self.path(kind.plural()));
        self.plane.api().create(&path, &object).map_err(|error| error.to_string())
    }

    fn create(&self, kind: Kind, name: &str, spec: &Value) -> Value {
        let object = json!({
            "apiVersion": "modelrelay.io/v1alpha1", "kind": kind.as_str(), "metadata": { "name": name }, "spec": spec,
        });
        self.plane.api().create(&self.path(kind.plural()), &object).unwrap()
    }

    fn try_merge(&self, kind: Kind, name: &str, change: &Value) -> Result<Value, String> {
        let path = format!("{}/{name}", self.path(kind.plural()));
        self.plane.api().patch(&path, Patch::Merge, change).map_err(|error| error.to_string())
    }
}

#[derive(Clone, Copy)]
enum Kind {
    ModelRelay,
    WorkerPool,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::ModelRelay => "ModelRelay",
            Self::WorkerPool => "WorkerPool",
        }
    }

    /// What relays are told of such an object.
    fn settings(self, object: Value) -> RelayConfig {
        match self {
            Self::ModelRelay => {
                let relay: ModelRelay = serde_json::from_value(object).unwrap();
                settings::config(&relay, Given::default()).unwrap()
            }
            Self::WorkerPool => {
                let pool: WorkerPool = serde_json::from_value(object).unwrap();
                let credential = settings::worker_credential(&pool, "mr_id_secret");
                RelayConfig { worker_credentials: vec![credential], ..RelayConfig::default() }
            }
        }
    }

    fn plural(self) -> &'static str {
        match self {
            Self::ModelRelay => "modelrelays",
            Self::WorkerPool => "workerpools",
        }
    }
}

/// Specs that are refused, each with the field that the refusal names and what it says of it.
fn refuse(kind: Kind, table: &[(Value, &str, &str)]) {
    let Some(place) = Place::new("refused") else { return };
    let mut wrong = Vec::new();
    for (spec, field, message) in table {
        match place.try_create(kind, "main", spec) {
            Ok(_) => wrong.push(format!("{spec}: accepted")),
            Err(error) => {
                if !error.contains(field) || !error.contains(message) {
                    wrong.push(format!("{spec}: {error}\n    wanted: {field}: {message}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Specs that are accepted, and that relays can be given as settings.
fn accept(kind: Kind, specs: &[Value]) {
    let Some(place) = Place::new("accepted") else { return };
    let refused = |spec: &Value| match place.try_create(kind, "main", spec) {
        Ok(object) => kind.settings(object).validate().err().map(|error| format!("{spec}: {error}")),
        Err(error) => Some(error),
    };
    let wrong: Vec<_> = specs.iter().filter_map(refused).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn many(count: usize) -> Value {
    (0..count).map(|number| (format!("k{number}"), Value::from("v"))).collect()
}

#[test]
fn a_name_from_which_no_child_can_be_named_is_refused() {
    let Some(place) = Place::new("names") else { return };
    for (kind, spec) in [(Kind::ModelRelay, json!({})), (Kind::WorkerPool, pools::url("http://a"))] {
        for name in ["1st", "a.b", &"a".repeat(41)] {
            let error = place.try_create(kind, name, &spec).unwrap_err();
            assert!(error.contains("must begin with a letter"), "{name}: {error}");
            assert!(error.contains("at most 40"), "{name}: {error}");
        }
        for name in ["a", "a-1", &"a".repeat(40)] {
            place.try_create(kind, name, &spec).unwrap();
        }
    }
}
