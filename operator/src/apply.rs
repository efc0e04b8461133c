//! Writing children: server-side apply with one field manager, who owns what, and what is no longer wanted.

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Resource, ResourceExt as _};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tracing::info;

use crate::cache::{NotReady, Watched};
use crate::canonical::canonical;
use crate::context::{CallError, Context};
use crate::naming::{APPLIED, FIELD_MANAGER};
use crate::same::covers;

/// The ModelRelay or WorkerPool that children belong to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// `ModelRelay` or `WorkerPool`.
    pub kind: String,
    /// `modelrelay.io/v1alpha1`.
    pub api_version: String,
    /// Its name.
    pub name: String,
    /// Its namespace, and that of its children.
    pub namespace: String,
    /// Its UID.
    pub uid: String,
}

impl Owner {
    /// Returns what children need to know of `object`, which must have been read from the API server.
    pub fn of<K: Resource<DynamicType = ()>>(object: &K) -> Self {
        Self {
            kind: K::kind(&()).into_owned(),
            api_version: K::api_version(&()).into_owned(),
            name: object.name_any(),
            namespace: object.namespace().unwrap_or_default(),
            uid: object.uid().unwrap_or_default(),
        }
    }

    /// The reference by which children say whose they are.
    pub fn reference(&self) -> OwnerReference {
        OwnerReference {
            api_version: self.api_version.clone(),
            kind: self.kind.clone(),
            name: self.name.clone(),
            uid: self.uid.clone(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        }
    }

    /// The object itself, for events.
    pub fn object(&self) -> ObjectReference {
        ObjectReference {
            api_version: Some(self.api_version.clone()),
            kind: Some(self.kind.clone()),
            name: Some(self.name.clone()),
            namespace: Some(self.namespace.clone()),
            uid: Some(self.uid.clone()),
            ..ObjectReference::default()
        }
    }

    /// Whether this very object controls `child`.
    pub fn controls(&self, child: &ObjectMeta) -> bool {
        controller(child).is_some_and(|owner| owner.uid == self.uid)
    }

    /// Whether an earlier object of the same kind and name controls `child`.
    fn preceded(&self, child: &ObjectMeta) -> bool {
        controller(child).is_some_and(|owner| {
            owner.uid != self.uid
                && owner.kind == self.kind
                && owner.api_version == self.api_version
                && owner.name == self.name
        })
    }
}

fn controller(child: &ObjectMeta) -> Option<&OwnerReference> {
    child.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))
}

/// Why a child is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// An object of that name is somebody else's.
    #[error("{kind} \"{name}\" exists and does not belong to this object; rename or delete it")]
    NameConflict {
        /// Its kind.
        kind: String,
        /// Its name.
        name: String,
    },
    /// The API server does not take it.
    #[error("the API server refused {kind} \"{name}\": {source}")]
    Refused {
        /// Its kind.
        kind: String,
        /// Its name.
        name: String,
        /// What it answered.
        source: CallError,
    },
    /// A child of an earlier object of the same name is still being deleted.
    #[error("{kind} \"{name}\" of an earlier object of this name is being deleted")]
    Leftover {
        /// Its kind.
        kind: String,
        /// Its name.
        name: String,
    },
    /// The API server failed; trying again may help.
    #[error(transparent)]
    Call(#[from] CallError),
    /// A watch has not told yet what there is.
    #[error(transparent)]
    NotReady(#[from] NotReady),
}

/// The last write of a child that changed nothing: as long as both sides stay so, it is not repeated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Remembered {
    resource_version: String,
    desired: String,
}

/// Whether a write was needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The child was as it should be.
    None,
    /// It was made.
    Created,
    /// It was brought in line.
    Updated,
}

impl Context {
    /// Brings one child in line with `desired`, whose name must be set; namespace and owner are set here.
    ///
    /// # Errors
    /// Why the child is not as it should be.
    pub async fn apply<K: Watched>(&self, owner: &Owner, mut desired: K) -> Result<Change, ApplyError> {
        let (kind, name) = (K::kind(&()).into_owned(), desired.name_any());
        desired.meta_mut().namespace = Some(owner.namespace.clone());
        desired.meta_mut().owner_references = Some(vec![owner.reference()]);
        let wanted = with_hash(serde_json::to_value(&desired).expect("a Kubernetes object is JSON"));
        let hash = wanted["metadata"]["annotations"][APPLIED].as_str().unwrap_or_default().to_owned();
        let key = format!("{kind}/{}/{name}", owner.namespace);
        let live = self.live::<K>(&owner.namespace, &name).await?;
        if let Some(live) = &live {
            if owner.preceded(live.meta()) {
                self.delete_leftover(live).await?;
                return Err(ApplyError::Leftover { kind, name });
            }
            if !owner.controls(live.meta()) {
                return Err(ApplyError::NameConflict { kind, name });
            }
            let seen = serde_json::to_value(live).expect("a Kubernetes object is JSON");
            let unchanged = self.remembered(|all| {
                all.get(&key).is_some_and(|last| {
                    last.desired == hash
                        && Some(&last.resource_version) == live.meta().resource_version.as_ref()
                })
            });
            if unchanged || covers(&seen, &wanted) {
                return Ok(Change::None);
            }
        }
        let api: Api<K> = Api::namespaced(self.client.clone(), &owner.namespace);
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let written = self
            .call(format!("apply {kind} \"{name}\""), api.patch(&name, &params, &Patch::Apply(&wanted)))
            .await
            .map_err(|source| refused(&kind, &name, source))?;
        let version = written.meta().resource_version.clone();
        let before = live.as_ref().and_then(|live| live.meta().resource_version.clone());
        if let Some(resource_version) = version.clone() {
            self.remembered(|all| all.insert(key, Remembered { resource_version, desired: hash }));
        }
        if before.is_some() && before == version {
            return Ok(Change::None);
        }
        let (change, reason) = match before {
            Some(_) => (Change::Updated, "Updated"),
            None => (Change::Created, "Created"),
        };
        info!(kind, name, namespace = owner.namespace, owner = owner.name, "{reason}");
        self.done(owner, &written, reason, "Apply").await;
        Ok(change)
    }

    /// Returns the object as it is: from the cache, else from the API server, since the cache may lag and holds only what is
    /// labelled as the operator's.
    ///
    /// # Errors
    /// The API server failed.
    pub async fn live<K: Watched>(&self, namespace: &str, name: &str) -> Result<Option<K>, CallError> {
        if let Some(cached) = K::cache(&self.caches).get(namespace, name) {
            return Ok(Some(cached.as_ref().clone()));
        }
        let api: Api<K> = Api::namespaced(self.client.clone(), namespace);
        self.call(format!("get {} \"{name}\"", K::kind(&())), api.get_opt(name)).await
    }

    /// Makes an object that must never be overwritten, such as a generated secret, unless it exists, and returns the live
    /// one. Namespace and owner are set here.
    ///
    /// # Errors
    /// Why it could not be made or read back.
    pub async fn create_once<K: Watched>(&self, owner: &Owner, mut fresh: K) -> Result<K, ApplyError> {
        let (kind, name) = (K::kind(&()).into_owned(), fresh.name_any());
        if let Some(live) = self.live::<K>(&owner.namespace, &name).await? {
            return self.own(owner, live).await;
        }
        fresh.meta_mut().namespace = Some(owner.namespace.clone());
        fresh.meta_mut().owner_references = Some(vec![owner.reference()]);
        let api: Api<K> = Api::namespaced(self.client.clone(), &owner.namespace);
        let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        match self.call(format!("create {kind} \"{name}\""), api.create(&params, &fresh)).await {
            Ok(made) => {
                info!(kind, name, namespace = owner.namespace, owner = owner.name, "Created");
                self.done(owner, &made, "Created", "Create").await;
                Ok(made)
            }
            // Another leader was faster: its value counts.
            Err(error) if error.status() == Some(409) => {
                let live = self.call(format!("get {kind} \"{name}\""), api.get(&name)).await?;
                self.own(owner, live).await
            }
            Err(error) => Err(refused(&kind, &name, error)),
        }
    }

    async fn own<K: Watched>(&self, owner: &Owner, live: K) -> Result<K, ApplyError> {
        if owner.controls(live.meta()) {
            return Ok(live);
        }
        let (kind, name) = (K::kind(&()).into_owned(), live.name_any());
        if owner.preceded(live.meta()) {
            self.delete_leftover(&live).await?;
            return Err(ApplyError::Leftover { kind, name });
        }
        Err(ApplyError::NameConflict { kind, name })
    }

    /// Deletes every child of the kind that `owner` controls and that is not named in `keep`.
    ///
    /// # Errors
    /// The API server failed, or it is not known what there is.
    pub async fn prune<K: Watched>(&self, owner: &Owner, keep: &[&str]) -> Result<(), ApplyError> {
        let cache = K::cache(&self.caches);
        let unwanted = cache.matching(|child| {
            child.meta().namespace.as_deref() == Some(&owner.namespace)
                && owner.controls(child.meta())
                && child.meta().deletion_timestamp.is_none()
                && child.meta().name.as_deref().is_some_and(|name| !keep.contains(&name))
        })?;
        for child in unwanted {
            self.delete(owner, child.as_ref()).await?;
        }
        Ok(())
    }

    /// Deletes an object, provided that it still is the one that was seen.
    ///
    /// # Errors
    /// The API server failed.
    pub async fn delete<K: Watched>(&self, owner: &Owner, seen: &K) -> Result<(), CallError> {
        let preconditions = Preconditions { uid: seen.uid(), resource_version: seen.resource_version() };
        if self.delete_if(seen, preconditions).await? {
            let (kind, name) = (K::kind(&()).into_owned(), seen.name_any());
            info!(kind, name, namespace = owner.namespace, owner = owner.name, "Deleted");
            self.done(owner, seen, "Deleted", "Delete").await;
        }
        Ok(())
    }

    /// Tells of something that was done to a child.
    async fn done<K: Watched>(&self, owner: &Owner, child: &K, reason: &str, action: &str) {
        let note = format!("{} {}", K::kind(&()), child.name_any());
        // Without the version: it would make each event another one.
        let child = ObjectReference { resource_version: None, ..child.object_ref(&()) };
        self.child_event(&owner.object(), child, reason, action, note).await;
    }

    async fn delete_leftover<K: Watched>(&self, seen: &K) -> Result<(), CallError> {
        if seen.meta().deletion_timestamp.is_some() {
            return Ok(());
        }
        let preconditions = Preconditions { uid: seen.uid(), resource_version: None };
        self.delete_if(seen, preconditions).await.map(|_| ())
    }

    /// Returns whether there was something to delete.
    async fn delete_if<K: Watched>(&self, seen: &K, preconditions: Preconditions) -> Result<bool, CallError> {
        let (namespace, name) = (seen.namespace().unwrap_or_default(), seen.name_any());
        let api: Api<K> = Api::namespaced(self.client.clone(), &namespace);
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::background() };
        self.remembered(|all| all.remove(&format!("{}/{namespace}/{name}", K::kind(&()))));
        match self.call(format!("delete {} \"{name}\"", K::kind(&())), api.delete(&name, &params)).await {
            Ok(_) => Ok(true),
            Err(error) if error.status() == Some(404) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn refused(kind: &str, name: &str, source: CallError) -> ApplyError {
    if source.is_refusal() {
        return ApplyError::Refused { kind: kind.to_owned(), name: name.to_owned(), source };
    }
    ApplyError::Call(source)
}

/// Adds the hash of the whole object as an annotation: a field that is no longer rendered changes nothing else that could
/// be seen. A template that means the same has the same hash, and is not written again.
fn with_hash(mut object: Value) -> Value {
    let mut hashed = object.clone();
    if let Some(template) = hashed.pointer_mut("/spec/template") {
        *template = canonical(template);
    }
    let digest = Sha256::digest(hashed.to_string());
    let hash: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let metadata = &mut object["metadata"];
    if metadata["annotations"].is_null() {
        metadata["annotations"] = Value::Object(serde_json::Map::new());
    }
    metadata["annotations"][APPLIED] = Value::String(hash);
    object
}
