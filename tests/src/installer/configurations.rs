//! The handler in the configurations of real containerds, of k3s and of RKE2.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use super::{DEBIAN_CONFIG, Node, containerds, tree};

/// A configuration with a runtime of somebody else's, and without the default one.
const OTHER_RUNTIME: &str = r#"version = 2
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.other]
  runtime_type = "io.containerd.other.v1"
"#;

/// The same in the oldest format.
const FIRST_VERSION: &str = r#"
oom_score = 5
[plugins.cri.containerd.runtimes.other]
  runtime_type = "io.containerd.other.v1"
"#;

#[test]
fn real_containerds_have_the_handler_and_all_that_they_had() {
    for containerd in containerds() {
        let default = Command::new(&containerd)
            .args(["config", "default"])
            .output();
        let default = String::from_utf8(default.unwrap().stdout).unwrap();
        let numbered = |version: u32| format!("version = {version}\noom_score = 7\n");
        let mut configs = vec![
            None,
            Some(String::new()),
            Some(DEBIAN_CONFIG.into()),
            Some(OTHER_RUNTIME.into()),
            Some(FIRST_VERSION.into()),
            Some(default.clone()),
            Some(numbered(2)),
        ];
        if is_second(&containerd) {
            configs.push(Some(numbered(3)));
        }
        for config in configs {
            let node = Node::with_containerd(&containerd, None);
            if let Some(config) = config {
                let etc = node.root().join("etc").display().to_string();
                node.write("etc/containerd/config.toml", &config.replace("/etc", &etc));
            }
            takes_the_handler(&node);
        }
    }
}

#[test]
fn a_containerd_that_imports_gets_a_file_of_its_own() {
    for containerd in containerds() {
        let node = Node::with_containerd(&containerd, None);
        let directory = node.root().join("etc/containerd/conf.d");
        for config in [OTHER_RUNTIME, DEBIAN_CONFIG] {
            let config = format!("imports = ['{}/*.toml']\n{config}", directory.display());
            node.write("etc/containerd/config.toml", &config);
            takes_the_handler(&node);
            let release = node.directory.path().join("orlop-1.0.0-x86_64");
            node.installs(&release, &[]);
            // containerd 1.x would forget what it has.
            let dropin = is_second(&containerd);
            assert_eq!(directory.join("orlop.toml").exists(), dropin);
            assert_eq!(node.read("etc/containerd/config.toml") == config, dropin);
            node.installs(&release, &["--uninstall"]);
        }
    }
}

fn is_second(containerd: &Path) -> bool {
    let version = Command::new(containerd).arg("--version").output().unwrap();
    String::from_utf8_lossy(&version.stdout).contains("containerd/v2 ")
}

/// Installs a release and takes it away again.
fn takes_the_handler(node: &Node) {
    let release = node.directory.path().join("orlop-1.0.0-x86_64");
    if !release.exists() {
        node.release("1.0.0");
    }
    let (before, without) = (tree(&node.root()), node.dump());
    node.installs(&release, &[]);
    let with = node.dump();
    let config = node.read("etc/containerd/config.toml");
    assert!(
        with.contains("io.containerd.orlop.v2"),
        "{config}\nis\n{with}"
    );
    assert!(with.contains("orlop.dev/*"), "{config}\nis\n{with}");
    let mut lines = BTreeMap::new();
    for line in with.lines() {
        *lines.entry(line.trim()).or_insert(0) += 1;
    }
    for line in without.lines().map(str::trim) {
        // The one names the file; and 1.x prints all options of runc where they are not said, and none where its table is.
        let nothing = ["= \"\"", "= 0", "= false"];
        if line.starts_with("imports = ") || nothing.iter().any(|end| line.ends_with(end)) {
            continue;
        }
        let left = lines.get_mut(line).filter(|left| **left > 0);
        let left = left.unwrap_or_else(|| panic!("{line:?} is lost of {config}\nis\n{with}"));
        *left -= 1;
    }
    node.installs(&release, &["--uninstall"]);
    assert_eq!(tree(&node.root()), before);
}

#[test]
fn a_last_line_without_an_end_is_a_line() {
    let node = Node::new();
    let release = node.release("1.0.0");
    node.write("etc/containerd/config.toml", OTHER_RUNTIME.trim_end());
    for _ in 0..2 {
        node.installs(&release, &[]);
        let config = node.read("etc/containerd/config.toml");
        assert!(
            config.starts_with(&format!("{OTHER_RUNTIME}# >>> orlop")),
            "{config}"
        );
        assert_eq!(config.matches("orlop.v2").count(), 1, "{config}");
    }
    node.installs(&release, &["--uninstall"]);
    assert_eq!(node.read("etc/containerd/config.toml"), OTHER_RUNTIME);
}

#[test]
fn k3s_and_rke2_get_a_file_where_they_import_one() {
    for (name, unit) in [("k3s", "k3s"), ("rke2", "k3s")] {
        for (version, directory, table) in [
            (2, "config.toml.d", "io.containerd.grpc.v1.cri"),
            (3, "config-v3.toml.d", "io.containerd.cri.v1.runtime"),
        ] {
            let node = Node::new();
            let release = node.release("1.0.0");
            let place = format!("var/lib/rancher/{name}/agent/etc/containerd");
            let generated = format!(
                "# File generated by {name}. DO NOT EDIT. Use {directory}/*.toml.tmpl instead.\nversion = {version}\nimports = [\"/{place}/{directory}/*.toml\"]\n\n[plugins]\n"
            );
            node.write(&format!("{place}/config.toml"), &generated);
            let before = tree(&node.root());
            node.installs(&release, &[]);
            let dropin = node.read(&format!("{place}/{directory}/orlop.toml"));
            assert_eq!(
                dropin,
                format!(
                    "version = {version}\n[plugins.\"{table}\".containerd.runtimes.orlop]\n  runtime_type = \"io.containerd.orlop.v2\"\n  pod_annotations = [\"orlop.dev/*\"]\n"
                )
            );
            assert_eq!(node.restarts(), format!("{unit}\n"));
            assert_eq!(node.read(&format!("{place}/config.toml")), generated);
            node.installs(&release, &["--uninstall"]);
            assert_eq!(tree(&node.root()), before);
        }
    }
}

#[test]
fn a_k3s_that_imports_nothing_is_refused() {
    let node = Node::new();
    let place = "var/lib/rancher/k3s/agent/etc/containerd";
    node.write(&format!("{place}/config.toml"), "version = 3\n[plugins]\n");
    let release = node.release("1.0.0");
    let refused = node.refuses(&release, &[]);
    assert!(refused.contains("k3s imports no drop-ins"), "{refused}");

    // What a template of its administrator's makes of it.
    let table = "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.orlop]";
    node.write(
        &format!("{place}/config.toml"),
        &format!("version = 3\n{table}\n"),
    );
    node.installs(&release, &[]);
    assert_eq!(node.restarts(), "");
}
