//! With namespaces of this machine, which root may make.

use std::process::Command;

use super::*;

/// A namespace with a name, in which `script` has been run, one `ip` command a line.
struct Place(String);

impl Place {
    fn new(name: &str, script: &str) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: only root may make a network namespace");
            return None;
        }
        let name = format!("orlop-{name}-{}", std::process::id());
        let place = Self(name.clone());
        ip(&format!("netns add {name}"));
        for line in script
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
        {
            ip(&format!("-n {name} {line}"));
        }
        Some(place)
    }

    fn namespace(&self) -> Namespace {
        Namespace::open(&self.path()).unwrap()
    }

    fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.0)
    }

    fn said(&self, program: &str, line: &str) -> String {
        let done = Command::new("ip")
            .args(["netns", "exec", &self.0, program])
            .args(line.split(' '))
            .output()
            .unwrap();
        assert!(done.status.success(), "{program} {line}: {done:?}");
        String::from_utf8(done.stdout).unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

fn ip(line: &str) {
    let done = Command::new("ip").args(line.split(' ')).output().unwrap();
    assert!(done.status.success(), "ip {line}: {done:?}");
}

/// What a CNI makes, and more.
const POD: &str = "
    link set lo up
    link add name eth0 address 02:00:00:00:00:01 mtu 1400 type veth peer name peer0
    link add name net1 type veth peer name peer1
    link add name down0 type veth peer name peer2
    link set peer0 up
    link set peer1 up
    addr add 10.1.2.3/24 brd 10.1.2.255 dev eth0
    addr add fd00::3/64 dev eth0 nodad
    addr add 10.2.2.3 peer 10.2.2.1/32 dev net1
    link set eth0 up
    link set net1 up
    route add default via 10.1.2.1 dev eth0 mtu 1300
    route add 10.9.0.0/16 via 192.0.2.1 dev eth0 onlink
    route add 10.7.0.0/16 dev eth0 table 9
    route add blackhole 10.6.0.0/16
    neigh add 10.1.2.9 lladdr 02:00:00:00:00:09 dev eth0 nud permanent
    link set peer1 down
    link set peer2 down
";

#[test]
fn finds_what_leads_out_with_all_that_belongs_to_it() {
    let Some(place) = Place::new("look", POD) else {
        return;
    };
    let found = look(&place.namespace()).unwrap();
    let names: Vec<_> = found
        .iter()
        .map(|found| found.interface.name.as_str())
        .filter(|name| !name.starts_with("peer"))
        .collect();
    assert_eq!(names, ["eth0", "net1"], "not lo, and none that is down");
    let named = |name: &str| {
        let found = found.iter().find(|found| found.interface.name == name);
        found.unwrap().interface.clone()
    };
    let eth0 = named("eth0");
    assert_eq!((eth0.mac.as_str(), eth0.mtu), ("02:00:00:00:00:01", 1400));
    let address = |text: &str| {
        let found = eth0
            .addresses
            .iter()
            .find(|address| address.address == text);
        found.unwrap_or_else(|| panic!("no {text} in {eth0:?}"))
    };
    assert_eq!(address("10.1.2.3").broadcast, "10.1.2.255");
    assert_eq!(address("fd00::3").prefix_length, 64);
    assert!(!address("fd00::3").detect_duplicates);
    assert_eq!(address("fe80::ff:fe00:1").scope, 253);
    let route = |destination: &str| {
        let of = |route: &&orlop_proto::agent::v1::Route| route.destination == destination;
        eth0.routes.iter().find(of)
    };
    let default = route("0.0.0.0").unwrap();
    assert_eq!((default.gateway.as_str(), default.mtu), ("10.1.2.1", 1300));
    assert!(route("10.9.0.0").unwrap().onlink);
    assert_eq!(route("10.1.2.0").unwrap().source, "10.1.2.3");
    assert!(route("10.7.0.0").is_none(), "it is in another table");
    assert_eq!(eth0.neighbours.len(), 1, "{eth0:?}");
    assert_eq!(eth0.neighbours[0].mac, "02:00:00:00:00:09");
    let net1 = named("net1");
    assert_eq!(net1.addresses[0].peer, "10.2.2.1");
}

#[test]
fn the_machines_own_network_is_refused_and_a_missing_one_named() {
    let error = Namespace::open("/proc/self/ns/net".as_ref()).unwrap_err();
    assert!(matches!(error, NetworkError::HostNetwork), "{error}");
    assert!(error.to_string().contains("hostNetwork"), "{error}");
    let error = Namespace::open("/run/netns/none-of-this-name".as_ref()).unwrap_err();
    assert!(error.to_string().contains("none-of-this-name"), "{error}");
}

#[test]
fn what_was_joined_is_parted_again_and_again() {
    let Some(place) = Place::new("join", POD) else {
        return;
    };
    let mut found = look(&place.namespace()).unwrap();
    found.retain(|found| found.interface.name == "eth0");
    let joined = Joined {
        namespace: place.path(),
        interfaces: vec!["eth0".into()],
    };
    match join(&place.namespace(), found.clone(), 2) {
        // The kernel of some build machines has no filters.
        Err(NetworkError::Join { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            eprintln!("skipped: this kernel has no cls_matchall or act_mirred");
        }
        cards => {
            let cards = cards.unwrap();
            assert_eq!(cards[0].queues.len(), 2);
            assert!(place.said("ip", "link show pod-tap0").contains("mtu 1400"));
            let filters = place.said("tc", "filter show dev eth0 ingress");
            assert!(filters.contains("pod-tap0"), "{filters}");
            drop(cards);
            part(&joined);
        }
    }
    assert!(!place.said("ip", "link").contains("pod-tap"));
    let queues = place.said("tc", "qdisc show");
    assert!(!queues.contains("ingress"), "{queues}");
    part(&joined);

    // What is another's is neither used nor taken away.
    place.said("tc", "qdisc add dev eth0 ingress");
    let error = join(&place.namespace(), found, 1).unwrap_err();
    assert!(matches!(error, NetworkError::Taken(_)), "{error}");
    assert!(place.said("tc", "qdisc show").contains("ingress"));
    assert!(!place.said("ip", "link").contains("pod-tap"));

    let path = place.path();
    drop(place);
    assert!(!path.exists());
    part(&joined);
}

#[test]
fn whatever_is_dialled_on_the_namespaces_loopback_is_heard() {
    use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
    let Some(place) = Place::new("loopback", "link set lo up") else {
        return;
    };
    let namespace = place.namespace();
    let localhost = match localhost_of(&namespace) {
        Some(localhost) => localhost,
        None => return,
    };
    let dial = |address: SocketAddr| {
        let dialled = place
            .namespace()
            .run(|| Ok(TcpStream::connect(address)))
            .unwrap();
        dialled.map(drop)
    };
    let [v4, v6] = [
        (Ipv4Addr::LOCALHOST, 8080).into(),
        (Ipv6Addr::LOCALHOST, 1).into(),
    ];
    for (address, listener) in [v4, v6].into_iter().zip(&localhost.listeners) {
        listener.set_nonblocking(false).unwrap();
        dial(address).unwrap();
        let (connection, _) = listener.accept().unwrap();
        // The connection knows what was dialled.
        assert_eq!(connection.local_addr().unwrap(), address);
    }
    drop(localhost);
    for address in [v4, v6] {
        let refused = dial(address).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    }
}

fn localhost_of(namespace: &Namespace) -> Option<Localhost> {
    let listening = namespace.run(|| Ok(localhost::listen(namespace.file())));
    match listening.unwrap() {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            eprintln!("skipped: this machine forbids bpf: {error}");
            None
        }
        listening => Some(listening.unwrap()),
    }
}
