//! The guest's network: what the host asks for is what a container sees.

use orlop_proto::agent::v1::{
    ConfigureNetworkRequest, Interface, InterfaceAddress, Neighbour, Route,
};
use tonic::Code;

use crate::harness::{Agent, spec};

/// Two pairs of links in place of the guest's cards, whose names are those that the other is to have.
const CARDS: &str = "\
    ip link add name net1 address 02:00:00:00:00:01 type veth peer name peer1 && \
    ip link add name eth0 address 02:00:00:00:00:02 type veth peer name peer2 && \
    ip link set peer1 up && ip link set peer2 up";

fn interface(name: &str, mac: &str) -> Interface {
    Interface {
        name: name.into(),
        mac: mac.into(),
        mtu: 1400,
        ..Default::default()
    }
}

fn address(address: &str, prefix_length: u32) -> InterfaceAddress {
    InterfaceAddress {
        address: address.into(),
        prefix_length,
        ..Default::default()
    }
}

fn route(destination: &str, prefix_length: u32, gateway: &str) -> Route {
    Route {
        destination: destination.into(),
        prefix_length,
        gateway: gateway.into(),
        protocol: 3,
        ..Default::default()
    }
}

#[tokio::test]
async fn interfaces_have_what_the_host_says_and_no_more() {
    let Some(mut agent) = Agent::start_after(CARDS).await else {
        return;
    };
    let eth0 = Interface {
        addresses: vec![address("10.1.2.3", 24), address("fd00:1::3", 64)],
        routes: vec![
            // By a gateway that the route behind it leads to.
            route("0.0.0.0", 0, "169.254.1.1"),
            Route {
                scope: 253,
                ..route("169.254.1.1", 32, "")
            },
            Route {
                mtu: 1300,
                onlink: true,
                ..route("10.9.0.0", 16, "192.0.2.1")
            },
            route("::", 0, "fe80::1"),
        ],
        neighbours: vec![Neighbour {
            address: "169.254.1.1".into(),
            mac: "ee:ee:ee:ee:ee:ee".into(),
        }],
        ..interface("eth0", "02:00:00:00:00:01")
    };
    let net1 = Interface {
        addresses: vec![address("10.2.2.3", 24)],
        ..interface("net1", "02:00:00:00:00:02")
    };
    let request = ConfigureNetworkRequest {
        interfaces: vec![eth0, net1],
    };
    agent
        .client
        .configure_network(request.clone())
        .await
        .unwrap();

    agent.make_root("seer");
    let script =
        "ip -o addr; echo; ip -4 route; echo; ip -6 route; echo; ip neigh; echo; ip -o link";
    let mut seer = spec(&["sh", "-c", script]);
    let namespaces = seer["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|namespace| namespace["type"] != "network");
    let (seen, errors, status) = agent.run("seer", &seer).await;
    assert_eq!((status, errors.as_str()), (0, ""), "{seen}");
    let mut parts = seen.split("\n\n");
    let (addresses, routes4, routes6) = (
        parts.next().unwrap(),
        parts.next().unwrap(),
        parts.next().unwrap(),
    );
    let (neighbours, links) = (parts.next().unwrap(), parts.next().unwrap());
    let of = |text: &str, words: &[&str]| {
        text.lines()
            .any(|line| words.iter().all(|word| line.contains(word)))
    };
    assert!(of(addresses, &["eth0", "10.1.2.3/24"]), "{addresses}");
    assert!(of(addresses, &["eth0", "fd00:1::3/64"]), "{addresses}");
    assert!(!of(addresses, &["fd00:1::3", "tentative"]), "{addresses}");
    assert!(of(addresses, &["net1", "10.2.2.3/24"]), "{addresses}");
    assert!(
        of(routes4, &["default via 169.254.1.1 dev eth0"]),
        "{routes4}"
    );
    assert!(
        of(routes4, &["10.9.0.0/16 via 192.0.2.1", "onlink"]),
        "{routes4}"
    );
    // The kernel would have added these.
    assert!(!of(routes4, &["10.1.2.0/24"]), "{routes4}");
    assert!(!of(routes4, &["10.2.2.0/24"]), "{routes4}");
    assert!(of(routes6, &["default via fe80::1 dev eth0"]), "{routes6}");
    assert!(
        of(
            neighbours,
            &["169.254.1.1", "ee:ee:ee:ee:ee:ee", "PERMANENT"]
        ),
        "{neighbours}"
    );
    assert!(
        of(links, &["eth0", "mtu 1400", "02:00:00:00:00:01"]),
        "{links}"
    );

    let again = agent.client.configure_network(request).await.unwrap_err();
    assert_eq!(again.code(), Code::FailedPrecondition, "{again}");
}

#[tokio::test]
async fn an_interface_that_is_not_there_is_an_error_and_changes_nothing() {
    let Some(mut agent) = Agent::start_after(CARDS).await else {
        return;
    };
    let interfaces = vec![
        interface("other", "02:00:00:00:00:01"),
        interface("eth1", "02:00:00:00:00:99"),
    ];
    let request = ConfigureNetworkRequest { interfaces };
    let error = agent.client.configure_network(request).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(error.message().contains("02:00:00:00:00:99"), "{error}");
    // The first is still there to be set up.
    let interfaces = vec![
        interface("eth0", "02:00:00:00:00:01"),
        interface("net1", "02:00:00:00:00:02"),
    ];
    let request = ConfigureNetworkRequest { interfaces };
    agent.client.configure_network(request).await.unwrap();

    let same = vec![
        interface("a", "02:00:00:00:00:01"),
        interface("a", "02:00:00:00:00:02"),
    ];
    let request = ConfigureNetworkRequest { interfaces: same };
    let error = agent.client.configure_network(request).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
}
