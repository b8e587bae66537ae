//! Archives and entries of the less usual kinds.

use super::*;

/// An archive as `docker save` writes it.
fn saved(layers: &[Vec<u8>]) -> Vec<u8> {
    let mut archive = Builder::new(Vec::new());
    let mut put = |name: &str, bytes: &[u8]| {
        let mut header = Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, bytes).unwrap();
    };
    let diff_ids: Vec<_> = layers
        .iter()
        .map(|one| format!("sha256:{}", sha256(one)))
        .collect();
    let names: Vec<_> = (0..layers.len())
        .map(|number| format!("{number}/layer.tar"))
        .collect();
    for (name, layer) in names.iter().zip(layers) {
        put(name, layer);
    }
    let config = json!({
        "os": "linux", "architecture": "amd64", "config": {"Cmd": ["saved"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    put("config.json", config.to_string().as_bytes());
    let manifest = json!([{"Config": "config.json", "RepoTags": ["it:1"], "Layers": names}]);
    put("manifest.json", manifest.to_string().as_bytes());
    archive.into_inner().unwrap()
}

#[test]
fn an_archive_of_docker_save_is_an_image_compressed_or_not() {
    if !is_root() || !can_make_disks() {
        return;
    }
    let layers = [layer(&[(FILE, "a", "1")]), layer(&[(FILE, "b", "2")])];
    let archive = saved(&layers);
    for bytes in [archive.clone(), gzip(&archive), zstd(&archive)] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image.tar");
        fs::write(&path, bytes).unwrap();
        let store = Store::new(directory.path().join("store"));
        fs::create_dir_all(store.unpacking()).unwrap();
        let opened = Image::open(path.to_str().unwrap(), &store.unpacking()).unwrap();
        let mut seen = 0;
        let kept = store.provide(&opened, "it", &mut |_, _| seen += 1).unwrap();
        assert_eq!(seen, 2);
        assert_eq!(kept.config.cmd, Some(vec!["saved".to_owned()]));
    }
}

#[test]
fn capabilities_of_programs_are_kept() {
    if !is_root() {
        return;
    }
    // VFS_CAP_REVISION_2 with the effective bit, and CAP_NET_BIND_SERVICE.
    let mut capability = vec![1, 0, 0, 2, 0, 4, 0, 0];
    capability.resize(20, 0);
    let mut layer = Builder::new(Vec::new());
    let record = ("SCHILY.xattr.security.capability", &*capability);
    layer.append_pax_extensions([record]).unwrap();
    let mut header = Header::new_ustar();
    header.set_path("ping").unwrap();
    header.set_mode(0o755);
    header.set_uid(7);
    header.set_gid(8);
    header.set_mtime(0);
    header.set_size(4);
    header.set_cksum();
    layer.append(&header, b"ping".as_slice()).unwrap();
    let root = applied(&[layer.into_inner().unwrap()]);
    let found = xattr::get(root.path().join("ping"), "security.capability");
    assert_eq!(found.unwrap(), Some(capability));
}

#[test]
fn an_image_has_no_more_bytes_and_files_than_it_may_have() {
    if !is_root() {
        return;
    }
    let large = "x".repeat(600);
    let one = layer(&[(DIRECTORY, "d", ""), (FILE, "d/a", &large)]);
    let two = layer(&[(FILE, "b", &large)]);
    let three = layer(&[(SYMLINK, "c", "a"), (LINK, "e", "b"), (FILE, ".wh.b", "")]);
    for (bytes, entries, refused) in [
        (1200, 6, None),
        (1199, 6, Some((1, "b", "bytes"))),
        (1200, 2, Some((1, "b", "files"))),
        (1200, 5, Some((2, ".wh.b", "files"))),
        (0, 6, Some((0, "d/a", "bytes"))),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let allowance = Allowance::of(bytes, entries);
        let unpacker = Unpacker::new(directory.path(), allowance).unwrap();
        let layers = [&one, &two, &three].into_iter().enumerate();
        let found = layers
            .filter_map(|(number, layer)| Some((number, unpacker.apply(layer.as_slice()).err()?)))
            .next();
        let Some((layer, name, what)) = refused else {
            assert!(found.is_none(), "{found:?}");
            continue;
        };
        let (number, failure) = found.unwrap();
        assert_eq!((number, failure.entry.as_deref()), (layer, Some(name)));
        assert_eq!(failure.source.kind(), std::io::ErrorKind::InvalidInput);
        assert!(failure.source.to_string().contains(what), "{failure:?}");
        assert!(!directory.path().join(name).exists());
    }
}
