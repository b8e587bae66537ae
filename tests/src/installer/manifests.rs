//! The manifests in `deploy/`: what kustomize makes of them, and that the Helm chart makes the same.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use crate::setup::build;
use crate::stories::skip;

/// What `kubectl kustomize` makes of a directory, or nothing where there is no kubectl.
fn kustomize(directory: &Path) -> Option<String> {
    let mut command = Command::new("kubectl");
    let done = command.arg("kustomize").arg(directory).output();
    done.ok().map(text)
}

fn text(done: Output) -> String {
    let error = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{error}");
    String::from_utf8(done.stdout).unwrap()
}

#[test]
fn the_chart_makes_what_kustomize_makes() {
    let deploy = build::source().join("deploy");
    let made = kustomize(&deploy).zip(kustomize(&deploy.join("installer")));
    let Some((class, installer)) = made else {
        return skip("there is no kubectl");
    };
    assert!(class.contains("kind: RuntimeClass"), "{class}");
    let mut helm = Command::new("helm");
    helm.args(["template", "orlop", "--namespace", "orlop-system"]);
    let Ok(chart) = helm.arg(deploy.join("helm/orlop")).output() else {
        return skip("there is no helm");
    };
    // Helm leaves the namespace to its user.
    let (namespace, installer) = installer.split_once("---\n").unwrap();
    assert!(namespace.contains("kind: Namespace"), "{namespace}");
    let wanted = uniform(&format!("{class}---\n{installer}"));
    assert_eq!(uniform(&text(chart)), wanted);
}

/// The same objects as kustomize writes them, so that neither order nor form matters.
fn uniform(objects: &str) -> String {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("all.yaml"), objects).unwrap();
    let customization = "resources: [all.yaml]\n";
    fs::write(directory.path().join("kustomization.yaml"), customization).unwrap();
    kustomize(directory.path()).unwrap()
}

#[test]
fn versions_are_those_of_the_release() {
    let deploy = build::source().join("deploy");
    let version = crate::package::VERSION;
    for (file, line) in [
        (
            "installer/kustomization.yaml",
            format!("newTag: {version}\n"),
        ),
        ("devices/kustomization.yaml", format!("newTag: {version}\n")),
        ("helm/orlop/Chart.yaml", format!("\nversion: {version}\n")),
        ("helm/orlop/Chart.yaml", format!("appVersion: {version}\n")),
    ] {
        let text = fs::read_to_string(deploy.join(file)).unwrap();
        assert!(text.contains(&line), "{file} does not have {line:?}");
    }
}
