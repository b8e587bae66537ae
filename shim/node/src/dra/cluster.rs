//! The API server, as a pod's service account may use it: a few requests a minute.
//!
//! Each request reads the account's files and connects anew: they change while the process runs, and a kept connection would know the old ones.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use ureq::Agent;
use ureq::http::{Method, Request, StatusCode};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};

use super::DRIVER;
use super::objects::{List, Metadata, Named, ResourceClaim, ResourceSlice};

/// How long the server may take; the kubelet waits for less than a minute.
const ANSWER: Duration = Duration::from_secs(20);

/// Who the server is told writes the objects.
const MANAGER: &str = "orlop-node";

const SLICES: &str = "/apis/resource.k8s.io/v1/resourceslices";

/// How the server is reached.
#[derive(Clone, Debug)]
pub struct Cluster {
    url: String,
    account: PathBuf,
}

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The process is no pod's.
    #[error("{0} is not set: `orlop-node dra` runs in a pod, see deploy/devices-dra")]
    NoPod(&'static str),
    /// The files of the service account.
    #[error("cannot read the service account's {}: {error}; --service-account says where it is", .path.display())]
    Account {
        /// Which.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// Its authority is none.
    #[error("{} has no certificate", .0.display())]
    NoCertificate(PathBuf),
    /// Not a name of Kubernetes.
    #[error("{0:?} is no name of an object")]
    Name(String),
    /// It was not reached, or not understood.
    #[error("cannot reach the API server: {0}")]
    Reach(#[source] ureq::Error),
    /// It said no.
    #[error("the API server refuses {what}: {message}")]
    Refused {
        /// The method and the path.
        what: String,
        /// Its words.
        message: String,
    },
    /// What it sent is not what it should.
    #[error("the API server's answer to {what} is not understood: {error}")]
    Answer {
        /// The method and the path.
        what: String,
        /// Why not.
        error: serde_json::Error,
    },
    /// The process ends.
    #[error("the request was given up")]
    GivenUp,
}

impl Cluster {
    /// The one that a pod is in, by its environment; `account` is the directory with its account's `token` and `ca.crt`.
    ///
    /// # Errors
    /// When the environment is no pod's.
    pub fn of_pod(account: impl Into<PathBuf>) -> Result<Self, Error> {
        let variable = |name: &'static str| std::env::var(name).map_err(|_| Error::NoPod(name));
        let host = variable("KUBERNETES_SERVICE_HOST")?;
        let port = variable("KUBERNETES_SERVICE_PORT")?;
        Ok(Cluster::at(&host, &port, account))
    }

    /// The one at this address.
    pub fn at(host: &str, port: &str, account: impl Into<PathBuf>) -> Self {
        let url = if host.contains(':') {
            format!("https://[{host}]:{port}")
        } else {
            format!("https://{host}:{port}")
        };
        Cluster {
            url,
            account: account.into(),
        }
    }

    /// A node, for what goes with it.
    ///
    /// # Errors
    /// When there is none.
    pub async fn node(&self, name: &str) -> Result<Metadata, Error> {
        let path = format!("/api/v1/nodes/{}", checked(name)?);
        let node: Named = self.ask(Method::GET, path, None).await?;
        Ok(node.metadata)
    }

    /// A claim.
    ///
    /// # Errors
    /// When there is none.
    pub async fn claim(&self, namespace: &str, name: &str) -> Result<ResourceClaim, Error> {
        let (namespace, name) = (checked(namespace)?, checked(name)?);
        let path = format!("/apis/resource.k8s.io/v1/namespaces/{namespace}/resourceclaims/{name}");
        self.ask(Method::GET, path, None).await
    }

    /// Makes a slice, or makes it this.
    ///
    /// # Errors
    /// When it cannot.
    pub async fn apply(&self, slice: &ResourceSlice) -> Result<(), Error> {
        let name = checked(&slice.metadata.name)?;
        let path = format!("{SLICES}/{name}?fieldManager={MANAGER}&force=true");
        let body = serde_json::to_vec(slice).map_err(|error| Error::Answer {
            what: path.clone(),
            error,
        })?;
        let _: Named = self.ask(Method::PATCH, path, Some(body)).await?;
        Ok(())
    }

    /// Removes the slices of a node's pool but for these.
    ///
    /// # Errors
    /// When it cannot.
    pub async fn remove_others(&self, node: &str, keep: &[ResourceSlice]) -> Result<(), Error> {
        let node = checked(node)?;
        // An encoded `=` and `,`.
        let path =
            format!("{SLICES}?fieldSelector=spec.nodeName%3D{node}%2Cspec.driver%3D{DRIVER}");
        let list: List = self.ask(Method::GET, path, None).await?;
        let is_kept = |name: &str| keep.iter().any(|slice| slice.metadata.name == name);
        let names = list.items.into_iter().map(|item| item.metadata.name);
        for name in names.filter(|name| !is_kept(name)) {
            let path = format!("{SLICES}/{}", checked(&name)?);
            let _: serde::de::IgnoredAny = self.ask(Method::DELETE, path, None).await?;
        }
        Ok(())
    }

    /// Asks, on a thread of its own: the client waits by blocking.
    async fn ask<T: DeserializeOwned + Send + 'static>(
        &self,
        method: Method,
        path: String,
        body: Option<Vec<u8>>,
    ) -> Result<T, Error> {
        let cluster = self.clone();
        let asked = tokio::task::spawn_blocking(move || {
            let what = format!("{method} {path}");
            let text = cluster.request(method, &path, body, &what)?;
            serde_json::from_slice(&text).map_err(|error| Error::Answer { what, error })
        });
        asked.await.unwrap_or(Err(Error::GivenUp))
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
        what: &str,
    ) -> Result<Vec<u8>, Error> {
        let (authority, token) = (self.file("ca.crt")?, self.file("token")?);
        let certificates: Vec<_> = parse_pem(&authority)
            .filter_map(|item| match item {
                Ok(PemItem::Certificate(certificate)) => Some(certificate),
                _ => None,
            })
            .collect();
        if certificates.is_empty() {
            return Err(Error::NoCertificate(self.account.join("ca.crt")));
        }
        let tls = TlsConfig::builder().root_certs(RootCerts::new_with_certs(&certificates));
        let agent: Agent = Agent::config_builder()
            .tls_config(tls.build())
            .https_only(true)
            .proxy(None)
            .timeout_global(Some(ANSWER))
            .http_status_as_error(false)
            .build()
            .into();
        let token = String::from_utf8_lossy(&token);
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url))
            .header("Authorization", format!("Bearer {}", token.trim()))
            .header("Accept", "application/json");
        let answer = match body {
            // Of the formats of a server-side apply this is the one, and JSON is YAML.
            Some(body) => request
                .header("Content-Type", "application/apply-patch+yaml")
                .body(body)
                .map_err(ureq::Error::Http)
                .and_then(|request| agent.run(request)),
            None => request
                .body(())
                .map_err(ureq::Error::Http)
                .and_then(|request| agent.run(request)),
        };
        let mut response = answer.map_err(Error::Reach)?;
        let text = response.body_mut().read_to_vec().map_err(Error::Reach)?;
        if response.status().is_success() {
            return Ok(text);
        }
        Err(Error::Refused {
            what: what.into(),
            message: message(response.status(), &text),
        })
    }

    fn file(&self, name: &str) -> Result<Vec<u8>, Error> {
        let path = self.account.join(name);
        std::fs::read(&path).map_err(|error| Error::Account { path, error })
    }
}

/// A part of a path: the API's names need no encoding.
fn checked(name: &str) -> Result<&str, Error> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
    if name.is_empty() || name.starts_with('.') || !name.chars().all(allowed) {
        return Err(Error::Name(name.into()));
    }
    Ok(name)
}

/// What the server says about a failure: the message of its `Status`, or what there is.
fn message(status: StatusCode, text: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Status {
        message: String,
    }
    match serde_json::from_slice(text) {
        Ok(Status { message }) => message,
        Err(_) => format!("status {status}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_found_by_either_kind_of_address() {
        assert_eq!(
            Cluster::at("10.0.0.1", "443", "/").url,
            "https://10.0.0.1:443"
        );
        assert_eq!(
            Cluster::at("fd00::1", "6443", "/").url,
            "https://[fd00::1]:6443"
        );
    }

    #[test]
    fn only_names_of_objects_are_asked_for() {
        for name in ["a", "node-1.example.com"] {
            assert_eq!(checked(name).unwrap(), name);
        }
        for name in ["", "..", "a/b", "a?b", "A", "a%2f"] {
            assert!(matches!(checked(name), Err(Error::Name(_))), "{name}");
        }
    }

    #[test]
    fn a_refusal_is_in_the_servers_words() {
        let text = br#"{ "kind": "Status", "status": "Failure", "message": "nodes \"a\" not found", "code": 404 }"#;
        assert_eq!(
            message(StatusCode::NOT_FOUND, text),
            "nodes \"a\" not found"
        );
        let text = b"<html>";
        assert_eq!(
            message(StatusCode::BAD_GATEWAY, text),
            "status 502 Bad Gateway"
        );
    }

    #[tokio::test]
    async fn what_is_missing_of_an_account_is_said() {
        let directory = tempfile::tempdir().unwrap();
        let cluster = Cluster::at("127.0.0.1", "9", directory.path());
        let error = cluster.node("a").await.unwrap_err();
        assert!(error.to_string().contains("ca.crt"), "{error}");
        for name in ["ca.crt", "token"] {
            std::fs::write(directory.path().join(name), "x").unwrap();
        }
        let error = cluster.node("a").await.unwrap_err();
        assert!(matches!(error, Error::NoCertificate(_)), "{error}");
    }
}
