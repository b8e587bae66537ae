//! Where a cgroup is, from what an OCI spec says of it: a path, as with the driver `cgroupfs`, or `slice:prefix:name`, as with `systemd`.

use std::path::{Component, Path, PathBuf};

/// The directory below the root of each hierarchy; none for a spec that names no cgroup, or one that leads elsewhere.
pub fn location(cgroups_path: &Path) -> Option<PathBuf> {
    let text = cgroups_path.to_str()?;
    let parts: Vec<_> = text.split(':').collect();
    let path = match parts.as_slice() {
        [slice, prefix, name] if !text.starts_with('/') => unit(slice, prefix, name)?,
        _ => PathBuf::from(text),
    };
    let mut inside = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => inside.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    Some(inside).filter(|inside| inside.components().next().is_some())
}

/// The directory of a unit of systemd's: `a-b.slice` is below `a.slice` (systemd.slice(5)), and a container is a scope in it.
fn unit(slice: &str, prefix: &str, name: &str) -> Option<PathBuf> {
    if name.is_empty() || [slice, prefix, name].iter().any(|part| part.contains('/')) {
        return None;
    }
    let slice = if slice.is_empty() {
        "system.slice"
    } else {
        slice
    };
    let words = slice.strip_suffix(".slice")?;
    let mut path = PathBuf::new();
    if words != "-" {
        let mut so_far = String::new();
        for word in words.split('-') {
            if word.is_empty() {
                return None;
            }
            so_far.push_str(word);
            path.push(format!("{so_far}.slice"));
            so_far.push('-');
        }
    }
    path.push(match (name.ends_with(".slice"), prefix) {
        (true, _) => name.to_owned(),
        (false, "") => format!("{name}.scope"),
        (false, prefix) => format!("{prefix}-{name}.scope"),
    });
    Some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_understood() {
        for (given, directory) in [
            (
                "/kubepods/burstable/pod1/abc",
                Some("kubepods/burstable/pod1/abc"),
            ),
            ("kubepods/pod1/abc", Some("kubepods/pod1/abc")),
            ("/default/web", Some("default/web")),
            (
                "kubepods-burstable-pod1_2.slice:cri-containerd:abc",
                Some(
                    "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice/cri-containerd-abc.scope",
                ),
            ),
            (
                ":cri-containerd:abc",
                Some("system.slice/cri-containerd-abc.scope"),
            ),
            (
                "-.slice:cri-containerd:abc",
                Some("cri-containerd-abc.scope"),
            ),
            ("user.slice::abc", Some("user.slice/abc.scope")),
            ("a.slice:x:b.slice", Some("a.slice/b.slice")),
            // A path may have colons.
            ("/a:b:c", Some("a:b:c")),
            ("", None),
            ("/", None),
            ("/kubepods/../../etc", None),
            ("a--b.slice:x:y", None),
            ("a:x:y", None),
            ("a.slice:x:", None),
            ("a.slice:../..:y", None),
        ] {
            let expected = directory.map(PathBuf::from);
            assert_eq!(location(Path::new(given)), expected, "{given}");
        }
    }
}
