//! A pod's VM is in the pod's network, as a CNI has made it: what reaches the pod's addresses reaches the guest, and nothing of it stays.

mod common;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Stage, output, processes, stage, with_config};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use orlop_testbed::containerd::cri::{Container, Cri, Pod, v1};
use orlop_testbed::containerd::{HANDLER, MTU, OrlopConfig, forward};
use serde_json::{Value, json};

/// Serves what it has, on all of its addresses.
const SERVER: &[&str] = &[
    "sh",
    "-c",
    "mkdir /www; seq 1 50000 >/www/numbers; exec busybox httpd -f -p 8080 -h /www",
];
const PORT: u16 = 8080;
/// What an emulated machine may take for what another does at once.
const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn a_pod_answers_at_its_addresses_and_reaches_its_host() {
    let Some(stage) = stage() else { return };
    let cri = stage.cri();
    let pod = cri
        .run_pod_changed("server", HANDLER, |config| {
            config.dns_config = Some(v1::DnsConfig {
                servers: vec!["192.0.2.53".into()],
                searches: vec!["stories.example".into()],
                options: vec!["ndots:3".into()],
            });
        })
        .unwrap();
    let addresses = cri.addresses(&pod).unwrap();
    let (v4, v6) = both(&addresses);
    let main = cri.run(&pod, &Container::busybox("main", SERVER)).unwrap();

    // What the CNI has made is what a container sees.
    let there = in_namespace(&cri, &pod, "cat /sys/class/net/eth0/address");
    let seen = output(&cri, &main, "cat /sys/class/net/eth0/address");
    assert_eq!(seen, there);
    let seen = output(&cri, &main, "busybox ip -o addr show dev eth0");
    for address in [format!("{v4}/16"), format!("{v6}/64")] {
        assert!(seen.contains(&address), "no {address} in {seen}");
    }
    assert!(!seen.contains("tentative"), "{seen}");
    assert!(seen.contains("fe80::"), "{seen}");
    let routes = output(&cri, &main, "busybox ip route; busybox ip -6 route");
    let (gateway4, gateway6) = gateways(&routes);
    assert!(routes.contains("10.88.0.0/16 dev eth0"), "{routes}");
    let mtu = output(&cri, &main, "cat /sys/class/net/eth0/mtu");
    assert_eq!(mtu.trim(), MTU.to_string());
    let names = output(&cri, &main, "cat /etc/resolv.conf");
    for line in [
        "nameserver 192.0.2.53",
        "search stories.example",
        "options ndots:3",
    ] {
        assert!(names.contains(line), "no {line:?} in {names}");
    }

    // The host reaches the pod, and the pod the host.
    for address in [v4, v6] {
        assert_eq!(fetch(address, "/numbers"), numbers(), "from {address}");
    }
    for gateway in [gateway4, gateway6] {
        let listener = TcpListener::bind((gateway, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let speaker = std::thread::spawn(move || {
            let (mut stream, peer) = listener.accept().unwrap();
            stream.write_all(b"from the host\n").unwrap();
            peer.ip()
        });
        let heard = output(&cri, &main, &format!("nc {gateway} {port} </dev/null"));
        assert_eq!(heard, "from the host\n");
        let from = speaker.join().unwrap();
        assert!(addresses.contains(&from), "{from} is not the pod's");
    }

    // The longest packet passes, and no longer one. 20 bytes are IPv4's header, 40 IPv6's, 8 ICMP's.
    for (address, header) in [(v4, 28), (v6, 48)] {
        let longest = MTU - header;
        assert!(pings(address, &["-M", "do", "-s", &longest.to_string()]));
        let more = (longest + 1).to_string();
        assert!(!pings(address, &["-M", "do", "-s", &more]));
        // In two packets it does.
        assert!(pings(address, &["-M", "dont", "-s", &more]));
    }
    cri.remove_pod(&pod).unwrap();
    stage.leaves_nothing();
}

#[test]
fn a_port_of_a_pod_can_be_forwarded() {
    let Some(stage) = stage() else { return };
    let cri = stage.cri();
    let pod = cri.run_pod("forward").unwrap();
    // They listen on the guest's loopback alone, so no other way leads to them.
    let script = "mkdir /www; seq 1 50000 >/www/numbers; \
        busybox httpd -p 127.0.0.1:8080 -h /www; busybox httpd -p [::1]:8081 -h /www; \
        trap 'exit 0' TERM; while :; do sleep 1; done";
    let command = ["sh", "-c", script];
    let main = cri
        .run(&pod, &Container::busybox("main", &command))
        .unwrap();
    let listen = "for port in 8080 8081; do until busybox netstat -ltn | grep -q :$port; do sleep 1; done; done";
    output(&cri, &main, listen);
    let ask = |port| {
        let address = cri.port_address(&pod, port).unwrap();
        forward::ask(&address, b"GET /numbers HTTP/1.0\r\n\r\n", LIMIT)
    };
    for port in [8080, 8081] {
        let answer = String::from_utf8(ask(port).unwrap()).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(" 200 "), "{head}");
        assert!(body == numbers(), "{} bytes from {port}", body.len());
    }
    // A port where nobody listens says nothing, and harms nobody.
    if let Ok(answer) = ask(8082) {
        assert!(answer.is_empty(), "{answer:?}");
    }
    assert!(!ask(8080).unwrap().is_empty());
    cri.remove_pod(&pod).unwrap();
    stage.leaves_nothing();
}

#[test]
fn pods_reach_each_other() {
    let Some(stage) = stage() else { return };
    let cri = stage.cri();
    let server = cri.run_pod("server").unwrap();
    let addresses = cri.addresses(&server).unwrap();
    cri.run(&server, &Container::busybox("main", SERVER))
        .unwrap();
    let client = cri.run_pod("client").unwrap();
    let wait = ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1; done"];
    let main = cri
        .run(&client, &Container::busybox("main", &wait))
        .unwrap();
    for address in addresses {
        let url = format!("http://{}/numbers", SocketAddr::new(address, PORT));
        let got = output(&cri, &main, &format!("wget -q -O - {url}"));
        assert!(got == numbers(), "{} bytes from {url}", got.len());
    }
    cri.remove_pod(&client).unwrap();
    cri.remove_pod(&server).unwrap();
    stage.leaves_nothing();
}

#[test]
fn a_pod_has_all_interfaces_and_the_hosts_rules_for_each_hold() {
    let Some(stage) = stage() else { return };
    let cri = stage.cri();
    let pod = cri.run_pod("two").unwrap();
    let first = cri.addresses(&pod).unwrap()[0];
    // As Multus does it: a second plugin for the same namespace. This one gives routes that its kernel would not have made.
    let second = Second::add(&stage, &cri, &pod);
    let main = cri.run(&pod, &Container::busybox("main", SERVER)).unwrap();
    let seen = output(&cri, &main, "busybox ip -o addr; busybox ip route");
    assert!(seen.contains(&format!("{first}/16")), "{seen}");
    assert!(seen.contains(&format!("{}/24", second.address)), "{seen}");
    assert!(
        seen.contains("10.89.0.0/24 via 10.89.0.1 dev net1"),
        "{seen}"
    );
    assert_eq!(output(&cri, &main, "cat /sys/class/net/net1/mtu"), "1300\n");
    for address in [first, second.address] {
        assert_eq!(fetch(address, "/numbers"), numbers(), "from {address}");
    }

    // The host's own rule for its end of the second, and for no other.
    let rule = format!("INPUT -i {} -j DROP", second.host_end);
    run("iptables", &format!("-I {rule}"));
    let dropped = (!pings(second.address, &[]), pings(first, &[]));
    run("iptables", &format!("-D {rule}"));
    assert_eq!(dropped, (true, true), "the rule does not hold");
    assert!(pings(second.address, &[]), "the rule holds on");

    second.remove();
    cri.remove_pod(&pod).unwrap();
    stage.leaves_nothing();
}

#[test]
fn a_guest_with_several_processors_has_as_many_queues() {
    let Some(stage) = stage() else { return };
    let more = |config: &mut OrlopConfig| config.vcpus = 2;
    with_config(&stage, more, || {
        let cri = stage.cri();
        let pod = cri.run_pod("queues").unwrap();
        let main = cri.run(&pod, &Container::busybox("main", SERVER)).unwrap();
        let queues = output(&cri, &main, "nproc; ls /sys/class/net/eth0/queues");
        assert_eq!(queues, "2\nrx-0\nrx-1\ntx-0\ntx-1\n");
        let tap = in_namespace(&cri, &pod, "ls /sys/class/net/pod-tap0/queues");
        assert_eq!(tap, "rx-0\nrx-1\ntx-0\ntx-1\n");
        let address = cri.addresses(&pod).unwrap()[0];
        for _ in 0..4 {
            assert_eq!(fetch(address, "/numbers"), numbers());
        }
        cri.remove_pod(&pod).unwrap();
    });
    stage.leaves_nothing();
}

#[test]
fn the_hosts_network_is_refused() {
    let Some(stage) = stage() else { return };
    let cri = stage.cri();
    let refused = cri.run_pod_changed("host", HANDLER, |config| {
        let options = v1::NamespaceOption {
            network: v1::NamespaceMode::Node.into(),
            ..Default::default()
        };
        if let Some(linux) = &mut config.linux {
            linux.security_context = Some(v1::LinuxSandboxSecurityContext {
                namespace_options: Some(options),
                ..Default::default()
            });
        }
    });
    let error = refused.unwrap_err();
    let message = error.message();
    assert!(message.contains("hostNetwork"), "{message}");
    assert_eq!(message.lines().count(), 1, "{message}");

    // The same for the host's namespace by its path.
    let name = common::unique("host");
    let with = ["--with-ns", "network:/proc/1/ns/net"];
    let image = orlop_testbed::image::BUSYBOX;
    let mut line = vec!["run", "--rm", "--runtime", "io.containerd.orlop.v2"];
    line.extend(with);
    line.extend([image, &name, "true"]);
    let done = stage.node.ctr("default", &line).unwrap();
    assert_ne!(done.status, 0, "it ran");
    let error = done.error();
    assert!(common::last_line(&error).contains("hostNetwork"), "{error}");
    stage.leaves_nothing();
}

#[test]
fn nothing_of_the_network_is_left_when_the_vmm_is_killed() {
    dies("orlop");
}

#[test]
fn nothing_of_the_network_is_left_when_the_shim_is_killed() {
    dies("containerd-shim-orlop-v2");
}

/// A pod whose `program` is killed leaves its namespace as the CNI has made it, even before the pod is removed.
fn dies(program: &str) {
    let Some(stage) = stage() else { return };
    let cri = stage.cri();
    let pod = cri.run_pod("dies").unwrap();
    let namespace = cri.network_namespace(&pod).unwrap();
    cri.run(&pod, &Container::busybox("main", SERVER)).unwrap();
    let look = "ip -o link; tc qdisc show";
    let joined = within(&namespace, look);
    assert!(
        joined.contains("pod-tap0") && joined.contains("ingress"),
        "{joined}"
    );
    let ids = processes(program);
    assert_eq!(ids.len(), 1, "of {program}");
    kill(Pid::from_raw(ids[0].cast_signed()), Signal::SIGKILL).unwrap();
    let end = Instant::now() + LIMIT;
    if program == "orlop" {
        // The shim lives, and holds what it has until the pod is stopped; which may be asked for before it has noticed the end.
        cri.remove_pod(&pod).unwrap();
        assert!(!namespace.exists());
    } else {
        // containerd has the shim's successor clean up.
        let mut left = within(&namespace, look);
        while (left.contains("pod-tap") || left.contains("ingress")) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(200));
            left = within(&namespace, look);
        }
        assert!(left.contains("eth0"), "{left}");
        assert!(
            !left.contains("pod-tap") && !left.contains("ingress"),
            "{left}"
        );
        cri.remove_pod(&pod).unwrap();
    }
    stage.leaves_nothing();
}

/// A second interface of a pod, by a second plugin.
struct Second {
    address: IpAddr,
    /// The host's end of it.
    host_end: String,
    configuration: Value,
    pod: String,
    namespace: PathBuf,
}

impl Second {
    fn add(stage: &Stage, cri: &Cri, pod: &Pod) -> Self {
        let configuration = json!({
            "cniVersion": "0.4.0",
            "name": "second",
            "type": "ptp",
            "mtu": 1300,
            "ipam": {
                "type": "host-local",
                "dataDir": stage.node.directory().join("ipam-second"),
                "ranges": [[{ "subnet": "10.89.0.0/24" }]],
            },
        });
        let mut second = Self {
            address: [0; 4].into(),
            host_end: String::new(),
            configuration,
            pod: pod.id.clone(),
            namespace: cri.network_namespace(pod).unwrap(),
        };
        let result: Value = serde_json::from_str(&second.plugin("ADD")).unwrap();
        let interfaces = result["interfaces"].as_array().unwrap();
        let outside = interfaces
            .iter()
            .find(|interface| interface["sandbox"].as_str().unwrap_or("").is_empty());
        second.host_end = outside.unwrap()["name"].as_str().unwrap().to_owned();
        let address = result["ips"][0]["address"].as_str().unwrap();
        second.address = address.split('/').next().unwrap().parse().unwrap();
        second
    }

    fn remove(self) {
        self.plugin("DEL");
    }

    fn plugin(&self, command: &str) -> String {
        let mut plugin = Command::new("/usr/lib/cni/ptp")
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", &self.pod)
            .env("CNI_NETNS", &self.namespace)
            .env("CNI_IFNAME", "net1")
            .env("CNI_PATH", "/usr/lib/cni")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let configuration = self.configuration.to_string();
        let mut stdin = plugin.stdin.take().unwrap();
        stdin.write_all(configuration.as_bytes()).unwrap();
        drop(stdin);
        let done = plugin.wait_with_output().unwrap();
        let said = String::from_utf8(done.stdout).unwrap();
        assert!(done.status.success(), "{command}: {said}");
        said
    }
}

/// An address of each protocol.
fn both(addresses: &[IpAddr]) -> (IpAddr, IpAddr) {
    let of = |v4: bool| {
        let mut all = addresses.iter().filter(|address| address.is_ipv4() == v4);
        *all.next().unwrap_or_else(|| panic!("only {addresses:?}"))
    };
    (of(true), of(false))
}

/// Where the default routes lead.
fn gateways(routes: &str) -> (IpAddr, IpAddr) {
    let gateways: Vec<IpAddr> = routes
        .lines()
        .filter_map(|line| line.strip_prefix("default via "))
        .filter_map(|rest| rest.split(' ').next()?.parse().ok())
        .collect();
    both(&gateways)
}

/// What the servers have as `/numbers`.
fn numbers() -> String {
    (1..=50000).map(|number| format!("{number}\n")).collect()
}

/// What a pod's server has at `path`, which may take a moment to listen.
fn fetch(address: IpAddr, path: &str) -> String {
    let end = Instant::now() + LIMIT;
    let mut stream = loop {
        let address = SocketAddr::new(address, PORT);
        match TcpStream::connect_timeout(&address, Duration::from_secs(10)) {
            Ok(stream) => break stream,
            Err(error) => assert!(Instant::now() < end, "{address}: {error}"),
        }
        std::thread::sleep(Duration::from_millis(200));
    };
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains(" 200 "), "{head}");
    body.to_owned()
}

fn pings(address: IpAddr, more: &[&str]) -> bool {
    let done = Command::new("ping")
        .args(["-n", "-c", "3", "-w", "10"])
        .args(more)
        .arg(address.to_string())
        .output()
        .unwrap();
    done.status.success()
}

fn run(program: &str, line: &str) {
    let done = Command::new(program).args(line.split(' ')).output();
    let done = done.unwrap();
    assert!(done.status.success(), "{program} {line}: {done:?}");
}

fn in_namespace(cri: &Cri, pod: &Pod, script: &str) -> String {
    within(&cri.network_namespace(pod).unwrap(), script)
}

/// What a script says that runs in a network namespace, with the view of it that `/sys` gives.
fn within(namespace: &Path, script: &str) -> String {
    let name = namespace.file_name().unwrap().to_str().unwrap();
    let known = Path::new("/run/netns").join(name);
    let same = |path: &Path| std::fs::metadata(path).map(|data| data.ino()).ok();
    assert_eq!(same(&known), same(namespace), "{}", namespace.display());
    let done = Command::new("ip")
        .args(["netns", "exec", name, "sh", "-c", script])
        .output()
        .unwrap();
    assert!(done.status.success(), "{script}: {done:?}");
    String::from_utf8(done.stdout).unwrap()
}
