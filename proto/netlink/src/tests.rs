//! Against the kernel of this machine, in namespaces made for it.

use std::io;

use nix::sched::{CloneFlags, unshare};

use super::*;

/// Runs `work` in a thread with an empty network namespace, on whose pair of links `left` and `right` it works. Says so and does not
/// run it where this user may not make one.
fn on_a_pair(work: impl FnOnce(&mut Netlink, &Link, &Link) + Send + 'static) {
    let thread = std::thread::spawn(move || {
        if unshare(CloneFlags::CLONE_NEWNET).is_err() {
            eprintln!("skipped: only root may make a network namespace");
            return;
        }
        let made = std::process::Command::new("ip")
            .args("link add name left type veth peer name right".split(' '))
            .status();
        assert!(made.unwrap().success());
        let mut netlink = Netlink::open().unwrap();
        let links = netlink.links().unwrap();
        let named = |name| links.iter().find(|link| link.name == name).unwrap().clone();
        work(&mut netlink, &named("left"), &named("right"));
    });
    thread.join().unwrap();
}

fn address(text: &str, prefix_length: u8) -> Address {
    Address {
        address: text.parse().unwrap(),
        prefix_length,
        peer: None,
        broadcast: None,
        scope: 0,
        detection: Detection::Done,
        origin: Origin::Set,
    }
}

fn route(destination: &str, length: u8) -> Route {
    Route {
        destination: Prefix {
            address: destination.parse().unwrap(),
            length,
        },
        gateway: None,
        source: None,
        scope: 0,
        protocol: 4,
        priority: 0,
        is_onlink: false,
        mtu: None,
    }
}

fn is_busy(error: &io::Error) -> bool {
    error.raw_os_error() == Some(16)
}

#[test]
fn a_link_says_what_it_is_and_takes_another_name_and_size() {
    on_a_pair(|netlink, left, _| {
        let lo = netlink.links().unwrap().remove(0);
        assert!(lo.is_loopback && lo.mac.is_none(), "{lo:?}");
        assert_eq!(left.kind, Kind::Own);
        assert_eq!((left.mtu, left.is_up), (1500, false));
        let mac = left.mac.unwrap();
        assert_eq!(mac.to_string().parse(), Ok(mac));
        netlink.rename(left.index, "eth0").unwrap();
        netlink.set_mtu(left.index, 1400).unwrap();
        netlink.set_up(left.index).unwrap();
        let links = netlink.links().unwrap();
        let now = links.iter().find(|link| link.index == left.index).unwrap();
        assert_eq!(
            (now.name.as_str(), now.mtu, now.is_up),
            ("eth0", 1400, true)
        );
        let again = netlink.rename(left.index, "right").unwrap_err();
        assert!(
            is_busy(&again) || again.kind() == io::ErrorKind::AlreadyExists,
            "{again}"
        );
    });
}

#[test]
fn a_made_up_mac_address_is_none() {
    for text in [
        "",
        "02:00:00:00:00",
        "02:00:00:00:00:+1",
        "02:00:00:00:00:01:02",
    ] {
        assert!(text.parse::<MacAddress>().is_err(), "{text}");
    }
}

#[test]
fn what_is_written_is_read_again() {
    on_a_pair(|netlink, left, right| {
        let mut v4 = address("10.1.2.3", 24);
        v4.broadcast = Some([10, 1, 2, 255].into());
        let v6 = address("fd00::3", 64);
        let mut own = address("fe80::1234", 64);
        own.scope = 253;
        for address in [&v4, &v6, &own] {
            netlink.add_address(left.index, address).unwrap();
        }
        netlink.set_up(left.index).unwrap();
        netlink.set_up(right.index).unwrap();
        let found = netlink.addresses().unwrap();
        for address in [v4, v6, own] {
            assert!(
                found.contains(&(left.index, address.clone())),
                "{address:?} in {found:?}"
            );
        }

        let mut connected = route("10.1.2.0", 24);
        connected.scope = 253;
        connected.source = Some([10, 1, 2, 3].into());
        let mut default = route("0.0.0.0", 0);
        default.gateway = Some([10, 1, 2, 1].into());
        default.mtu = Some(1300);
        let mut onlink = route("10.9.0.0", 16);
        onlink.gateway = Some([192, 0, 2, 1].into());
        onlink.is_onlink = true;
        onlink.priority = 7;
        let mut network = route("fd00::", 64);
        network.priority = 256;
        let mut default6 = route("::", 0);
        default6.gateway = Some("fd00::1".parse().unwrap());
        default6.priority = 1024;
        let mut mixed = route("10.8.0.0", 16);
        mixed.gateway = Some("fe80::1".parse().unwrap());
        let all = [connected, default, onlink, network, default6, mixed];
        for route in &all {
            netlink
                .add_route(left.index, route)
                .unwrap_or_else(|error| panic!("{route:?}: {error}"));
        }
        let found = netlink.routes().unwrap();
        for route in all {
            assert!(
                found.by_link.contains(&(left.index, route.clone())),
                "{route:?} in {found:?}"
            );
        }

        let mac = right.mac.unwrap();
        for address in ["10.1.2.9", "fd00::9"] {
            let neighbour = Neighbour {
                address: address.parse().unwrap(),
                mac,
            };
            netlink.add_neighbour(left.index, &neighbour).unwrap();
            let found = netlink.permanent_neighbours().unwrap();
            assert!(found.contains(&(left.index, neighbour)), "{found:?}");
        }
    });
}

#[test]
fn no_route_to_a_network_comes_with_an_address() {
    on_a_pair(|netlink, left, right| {
        netlink
            .add_address(left.index, &address("10.1.2.3", 24))
            .unwrap();
        netlink
            .add_address(left.index, &address("fd00::3", 64))
            .unwrap();
        netlink.set_up(left.index).unwrap();
        netlink.set_up(right.index).unwrap();
        let routes = netlink.routes().unwrap();
        let of_left: Vec<_> = routes
            .by_link
            .iter()
            .filter(|(link, _)| *link == left.index)
            .map(|(_, route)| route.destination.address.to_string())
            .filter(|address| address != "fe80::")
            .collect();
        assert!(of_left.is_empty(), "{of_left:?}");
    });
}

#[test]
fn a_queue_for_what_comes_in_is_there_once_and_goes() {
    on_a_pair(|netlink, left, right| {
        netlink.add_ingress(left.index).unwrap();
        let again = netlink.add_ingress(left.index).unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        match netlink.redirect(left.index, right.index) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                eprintln!("this kernel has no such filter: {error}");
            }
            done => done.unwrap(),
        }
        netlink.remove_ingress(left.index).unwrap();
        assert!(netlink.remove_ingress(left.index).is_err());
    });
}
