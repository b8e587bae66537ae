//! The ways into a pod that `kubectl` has.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::Stdio;

use serde_json::json;

use orlop_testbed::image::BUSYBOX;

use crate::stage::{LIMIT, WAIT, pod, shell, stage};

#[test]
fn commands_are_executed_with_their_streams_and_their_status() {
    let Some(stage) = stage() else { return };
    stage.apply(&[pod("open", json!([shell("main", WAIT)]), json!({}))]);
    stage.wait_until_ready("open");

    let kubectl = &stage.kubectl;
    let input: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
    let done = kubectl
        .output(&["exec", "--stdin", "open", "--", "cat"], &input)
        .unwrap();
    assert!(
        done.stdout == input,
        "{} bytes of {} came back",
        done.stdout.len(),
        input.len()
    );
    let line = [
        "exec",
        "open",
        "--",
        "sh",
        "-c",
        "echo out; echo err >&2; exit 7",
    ];
    let done = kubectl.output(&line, &[]).unwrap();
    assert_eq!(done.status.code(), Some(7));
    assert_eq!(done.stdout, b"out\n");
    assert!(done.stderr.starts_with(b"err\n"));
}

#[test]
fn files_are_copied_in_and_out() {
    let Some(stage) = stage() else { return };
    stage.apply(&[pod("files", json!([shell("main", WAIT)]), json!({}))]);
    stage.wait_until_ready("files");

    let directory = tempfile::tempdir().unwrap();
    let (there, back) = (
        directory.path().join("there"),
        directory.path().join("back"),
    );
    let content: Vec<u8> = (0..100_000_u32)
        .flat_map(|n| (n * 7).to_be_bytes())
        .collect();
    std::fs::write(&there, &content).unwrap();
    let kubectl = &stage.kubectl;
    kubectl
        .run(&["cp", there.to_str().unwrap(), "files:/tmp/copied"])
        .unwrap();
    kubectl
        .run(&["cp", "files:/tmp/copied", back.to_str().unwrap()])
        .unwrap();
    assert!(std::fs::read(&back).unwrap() == content);
}

#[test]
fn a_port_is_forwarded_to_the_guests_loopback() {
    let Some(stage) = stage() else { return };
    let serve = format!(
        "mkdir /www; echo forwarded >/www/x; busybox httpd -h /www -p 127.0.0.1:8080; {WAIT}"
    );
    stage.apply(&[pod("served", json!([shell("main", &serve)]), json!({}))]);
    stage.wait_until_ready("served");
    let answers = "until wget -q -O /dev/null http://127.0.0.1:8080/x; do sleep 1; done";
    stage.inside("served", answers);

    let mut forward = stage.kubectl.command();
    forward
        .args(["port-forward", "pod/served", ":8080"])
        .stdout(Stdio::piped());
    let mut forward = forward.spawn().unwrap();
    let mut said = String::new();
    let mut lines = BufReader::new(forward.stdout.take().unwrap());
    lines.read_line(&mut said).unwrap();
    // Forwarding from 127.0.0.1:PORT -> 8080
    let address = said
        .split_whitespace()
        .nth(2)
        .unwrap_or_else(|| panic!("{said:?}"));
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"GET /x HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    forward.kill().unwrap();
    forward.wait().unwrap();
    assert!(answer.ends_with("forwarded\n"), "{answer:?}");
}

#[test]
fn a_pod_is_attached_to_and_its_log_is_followed() {
    let Some(stage) = stage() else { return };
    let mut container = shell("main", "read line; echo \"heard $line\"");
    container["stdin"] = true.into();
    container["stdinOnce"] = true.into();
    stage.apply(&[pod(
        "ear",
        json!([container]),
        json!({ "restartPolicy": "Never" }),
    )]);
    stage.wait_until_ready("ear");
    let mut logs = stage.kubectl.command();
    let logs = logs
        .args(["logs", "--follow", "ear"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    stage
        .kubectl
        .output(&["attach", "--stdin", "ear"], b"this\n")
        .unwrap();
    let said = logs.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&said.stdout), "heard this\n");
}

#[test]
fn a_service_is_found_by_its_name() {
    let Some(stage) = stage() else { return };
    let serve = format!("mkdir /www; echo named >/www/x; busybox httpd -h /www -p 80; {WAIT}");
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "named" },
        "spec": { "selector": { "app": "named" }, "ports": [{ "port": 80 }] },
    });
    stage.apply(&[
        pod("named", json!([shell("main", &serve)]), json!({})),
        service,
        pod("asks", json!([shell("main", WAIT)]), json!({})),
    ]);
    stage.wait_until_ready("named");
    stage.wait_until_ready("asks");
    let resolver = stage.inside("asks", "cat /etc/resolv.conf");
    assert!(resolver.contains("svc.cluster.local"), "{resolver}");
    // By the name as the pod's own namespace has it, and by all of it. The rules of the service come a moment after the pod is ready.
    let whole = format!("named.{}.svc.cluster.local", stage.namespace());
    for name in ["named", &whole] {
        let ask = format!(
            "for n in 1 2 3 4 5 6 7 8 9; do wget -q -O - http://{name}/x && break; sleep 1; done"
        );
        assert_eq!(stage.inside("asks", &ask), "named\n");
    }
    let unknown = stage.inside("asks", "wget -q -O - http://nobody/x 2>&1 || true");
    assert!(unknown.contains("bad address"), "{unknown}");
}

#[test]
fn what_a_pod_uses_is_told_by_kubectl_top() {
    let Some(stage) = stage() else { return };
    // 40 MiB in a file system in memory, and a processor that is never idle.
    let work =
        format!("dd if=/dev/zero of=/dev/shm/held bs=1M count=40; while :; do :; done & {WAIT}");
    stage.apply(&[pod("works", json!([shell("main", &work)]), json!({}))]);
    stage.wait_until_ready("works");
    let used = stage
        .kubectl
        .wait_for("figure of what the pod uses", LIMIT, |kubectl| {
            let top = kubectl.output(&["top", "pod", "works", "--no-headers"], &[])?;
            // The first figures come after two looks at the pod; until then it is an error.
            let said = String::from_utf8_lossy(&top.stdout).into_owned();
            let figures = figures(&said).filter(|_| top.status.success());
            Ok(figures.filter(|&(millis, mebibytes)| millis > 100 && mebibytes >= 40))
        });
    let (millis, mebibytes) =
        used.unwrap_or_else(|error| panic!("{error:#}\n{}", stage.story_so_far()));
    println!("kubectl top: {millis} thousandths of a CPU, {mebibytes} MiB");
    let node = stage.kubectl.run(&["top", "node", "--no-headers"]).unwrap();
    assert!(node.starts_with("worker"), "{node}");
}

/// The thousandths of a CPU and the MiB in a line of `kubectl top pod`: `works  997m  42Mi`.
fn figures(line: &str) -> Option<(u32, u32)> {
    let mut words = line.split_whitespace().skip(1);
    let millis = words.next()?.strip_suffix('m')?.parse().ok()?;
    let mebibytes = words.next()?.strip_suffix("Mi")?.parse().ok()?;
    Some((millis, mebibytes))
}

#[test]
fn a_pod_is_debugged_by_an_ephemeral_container() {
    let Some(stage) = stage() else { return };
    let boot_id = "cat /proc/sys/kernel/random/boot_id";
    stage.apply(&[pod("patient", json!([shell("main", WAIT)]), json!({}))]);
    stage.wait_until_ready("patient");
    let guest = stage.inside("patient", boot_id);
    let image = format!("--image={BUSYBOX}");
    let line = [
        "debug",
        "patient",
        &image,
        "--container=doctor",
        "--profile=general",
        "--",
        "sh",
        "-c",
        boot_id,
    ];
    stage.kubectl.run(&line).unwrap();
    stage.wait_for("patient", "has been debugged", |pod| {
        pod["status"]["ephemeralContainerStatuses"][0]["state"]
            .get("terminated")
            .is_some()
    });
    let said = stage
        .kubectl
        .run(&["logs", "patient", "--container=doctor"])
        .unwrap();
    assert_eq!(said, guest, "the debugger is in another guest");
}
