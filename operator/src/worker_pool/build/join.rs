//! What a box outside needs to join: the Secret with the ready command line.

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::ObjectMeta;

use super::metadata;
use crate::naming::{Part, pool};
use crate::worker_pool::validate::External;

/// Everything in the Secret `<pool>-join` but the token, which is generated once and written by nobody else. `uid` is the
/// live Secret's: a write that comes after its deletion must not make one without a token.
pub(in crate::worker_pool) fn join(external: &External, relay_url: &str, token: &str, uid: String) -> Secret {
    let name = &external.owner.name;
    let entries = [
        ("relayUrl", relay_url.to_owned()),
        ("command", command(external, relay_url, token)),
        ("dockerCommand", docker_command(external, relay_url, token)),
    ];
    let data = entries.map(|(key, text)| (key.to_owned(), ByteString(text.into_bytes())));
    Secret {
        metadata: ObjectMeta { uid: Some(uid), ..metadata(Part::Worker, pool::join(name), name) },
        data: Some(data.into()),
        ..Secret::default()
    }
}

/// Writes the token to a file that only its owner can read. A here-document is no argument, so no process list shows it.
fn token_file(pool: &str, token: &str) -> String {
    format!(
        "umask 077 && mkdir -p \"$HOME/.modelrelay\" && rm -f \"$HOME/.modelrelay/{pool}.token\" && \
         cat > \"$HOME/.modelrelay/{pool}.token\" <<'END'\n{token}\nEND\n"
    )
}

fn command(external: &External, relay_url: &str, token: &str) -> String {
    let pool = &external.owner.name;
    format!(
        "{}modelrelay-worker --relay-url '{relay_url}' --worker-secret-file \"$HOME/.modelrelay/{pool}.token\" \
         --backend-url http://127.0.0.1:8000 --max-concurrency {}\n",
        token_file(pool, token),
        external.slots,
    )
}

fn docker_command(external: &External, relay_url: &str, token: &str) -> String {
    let pool = &external.owner.name;
    format!(
        "{}docker run --rm --network host --user \"$(id -u):$(id -g)\" \
         --volume \"$HOME/.modelrelay/{pool}.token:/token:ro\" {} --relay-url '{relay_url}' \
         --worker-secret-file /token --backend-url http://127.0.0.1:8000 --max-concurrency {}\n",
        token_file(pool, token),
        external.image,
        external.slots,
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::process::Command;

    use super::*;
    use crate::apply::Owner;

    fn external() -> External {
        let text = |text: &str| text.to_owned();
        let owner = Owner {
            kind: text("WorkerPool"),
            api_version: text("modelrelay.io/v1alpha1"),
            name: text("edge"),
            namespace: text("inference"),
            uid: text("0000-uid"),
        };
        External { owner, slots: 4, image: text("registry.example.com/modelrelay/worker:1.2.3") }
    }

    #[test]
    fn the_command_hands_the_token_over_in_a_file_that_only_its_owner_can_read() {
        let home = tempfile::tempdir().unwrap();
        let bin = home.path().join("bin");
        std::fs::create_dir(&bin).unwrap();
        // Stands for the program: shows what it was called with and where the token is.
        for program in ["modelrelay-worker", "docker"] {
            let path = bin.join(program);
            std::fs::write(&path, "#!/bin/sh\nprintf '%s\\n' \"$@\"\n").unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        let file = home.path().join(".modelrelay/edge.token");
        for text in [
            command(&external(), "https://relay.example.com", "s3cret"),
            docker_command(&external(), "https://relay.example.com", "s3cret"),
        ] {
            std::fs::create_dir_all(home.path().join(".modelrelay")).unwrap();
            std::fs::write(&file, "an older one that everybody can read").unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
            let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
            let output = Command::new("sh")
                .args(["-c", &text])
                .env("HOME", home.path())
                .env("PATH", path)
                .output()
                .unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let arguments = String::from_utf8(output.stdout).unwrap();
            assert!(arguments.contains("--relay-url\nhttps://relay.example.com\n"), "{arguments}");
            assert!(arguments.contains("--max-concurrency\n4\n"), "{arguments}");
            assert!(!arguments.contains("s3cret"), "{arguments}");
            assert_eq!(std::fs::read_to_string(&file).unwrap(), "s3cret\n");
            assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }
}
