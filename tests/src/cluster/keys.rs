//! The cluster's certificates, tokens and kubeconfigs. The keys are of P-256, which costs an emulated node least.

use std::fmt::Write as _;
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::network::{API_PORT, API_SERVICE, CONTROL_PLANE};
use super::{Files, NODE};

/// Who speaks with the API server: the name of the kubeconfig, and the user and group that its token stands for.
const USERS: &[(&str, &str, &str)] = &[
    ("admin", "admin", "system:masters"),
    ("controller-manager", "system:kube-controller-manager", ""),
    ("scheduler", "system:kube-scheduler", ""),
    ("proxy", "system:kube-proxy", ""),
];

/// Where the parts of the control plane find their keys.
#[derive(Debug, Clone)]
pub(super) struct Keys {
    directory: PathBuf,
}

impl Keys {
    pub(super) fn of(files: &Files) -> Self {
        Self {
            directory: files.keys(),
        }
    }

    /// A file by its name: `ca.crt`, `ca.key`, `server.crt`, `server.key`, `aggregator.crt`, `aggregator.key`, `accounts.key`, `accounts.pub`, `tokens`.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

/// Makes them all.
///
/// # Errors
/// When openssl cannot be run or refuses, or a file cannot be written.
pub(super) fn make(files: &Files) -> Result<()> {
    let directory = files.keys();
    fs::create_dir(&directory)?;
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o700))?;
    for key in ["ca.key", "server.key", "aggregator.key", "accounts.key"] {
        let line = [
            "ecparam",
            "-genkey",
            "-name",
            "prime256v1",
            "-noout",
            "-out",
            key,
        ];
        openssl(&directory, &line)?;
    }
    openssl(
        &directory,
        &[
            "req",
            "-x509",
            "-new",
            "-key",
            "ca.key",
            "-days",
            "30",
            "-subj",
            "/CN=cluster-ca",
            "-out",
            "ca.crt",
        ],
    )?;
    openssl(
        &directory,
        &[
            "ec",
            "-in",
            "accounts.key",
            "-pubout",
            "-out",
            "accounts.pub",
        ],
    )?;
    let names = format!(
        "subjectAltName=IP:127.0.0.1,IP:{CONTROL_PLANE},IP:{API_SERVICE},DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc"
    );
    certify(&directory, "server", "/CN=kube-apiserver", &names)?;
    // Who speaks for users to the servers of further APIs.
    certify(
        &directory,
        "aggregator",
        "/CN=aggregator",
        "extendedKeyUsage=clientAuth",
    )?;
    users(files)
}

/// Has the authority sign the certificate of a key, with an extension of X.509.
fn certify(directory: &Path, name: &str, subject: &str, extension: &str) -> Result<()> {
    let file = |kind: &str| format!("{name}.{kind}");
    let (key, request, certificate) = (file("key"), file("csr"), file("crt"));
    let extensions = file("extensions");
    fs::write(directory.join(&extensions), extension)?;
    let ask = [
        "req", "-new", "-subj", subject, "-key", &key, "-out", &request,
    ];
    openssl(directory, &ask)?;
    let by = ["-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial"];
    let with = ["-days", "30", "-extfile", &extensions];
    let sign = ["x509", "-req", "-in", &request, "-out", &certificate];
    openssl(directory, &[&sign[..], &by, &with].concat())
}

/// Gives each user a token and a kubeconfig.
fn users(files: &Files) -> Result<()> {
    let mut tokens = String::new();
    let node = format!("system:node:{NODE}");
    let kubelet = ("kubelet", node.as_str(), "system:nodes");
    for (name, user, group) in USERS.iter().copied().chain([kubelet]) {
        let token = token()?;
        writeln!(tokens, "{token},{user},{name},{group}")?;
        // JSON is YAML too.
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "testbed", "cluster": {
                "server": format!("https://{CONTROL_PLANE}:{API_PORT}"),
                "certificate-authority": files.keys().join("ca.crt"),
            }}],
            "users": [{ "name": name, "user": { "token": token } }],
            "contexts": [{ "name": "testbed", "context": { "cluster": "testbed", "user": name } }],
            "current-context": "testbed",
        });
        fs::write(files.kubeconfig(name), config.to_string())?;
    }
    Ok(fs::write(files.keys().join("tokens"), tokens)?)
}

fn token() -> Result<String> {
    let mut bytes = [0; 16];
    fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn openssl(directory: &Path, line: &[&str]) -> Result<()> {
    let done = Command::new("openssl")
        .args(line)
        .current_dir(directory)
        .output();
    let done = done.context("cannot run openssl; `cargo testbed setup` installs it")?;
    if !done.status.success() {
        let said = String::from_utf8_lossy(&done.stderr);
        bail!("openssl {}: {}", line.join(" "), said.trim());
    }
    Ok(())
}
