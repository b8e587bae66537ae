//! The guest's network, as the host asks for it: the interfaces, found by their MAC addresses, with what they are to have.
//!
//! The request is read as a whole before anything is changed ([`plan`]). Then all interfaces get their names, for one may have the
//! name that another is to have; then their addresses, and are set up; and then routes and neighbours, which may need the addresses.
//! Addresses come before an interface is up, so that the kernel makes no link-local address of its own, which it would have to try out
//! for a second.

mod plan;

use std::collections::HashSet;

use orlop_netlink::{Index, Link, Netlink};
use orlop_proto::agent::v1::Interface;

use self::plan::Plan;
use crate::error::{Error, Result};

/// A link, and what it is to be.
struct Match {
    link: Link,
    plan: Plan,
}

/// Sets the guest's network up.
///
/// # Errors
/// `INVALID_ARGUMENT` for a malformed request, `FAILED_PRECONDITION` for an interface that is not there or is up already, otherwise
/// what the kernel says.
pub fn configure(interfaces: &[Interface]) -> Result<()> {
    let plans = interfaces
        .iter()
        .map(Plan::parse)
        .collect::<Result<Vec<_>>>()?;
    refuse_one_name_for_two(&plans)?;
    let mut netlink =
        Netlink::open().map_err(|why| Error::system("cannot ask for the network", why))?;
    let links = netlink
        .links()
        .map_err(|why| Error::system("cannot list the interfaces", why))?;
    let matches = assign(links, plans)?;
    rename(&mut netlink, &matches)?;
    for Match { link, plan } in &matches {
        set_up(&mut netlink, link.index, plan)?;
    }
    for Match { link, plan } in &matches {
        connect(&mut netlink, link.index, plan)?;
    }
    Ok(())
}

fn refuse_one_name_for_two(plans: &[Plan]) -> Result<()> {
    let mut names = HashSet::new();
    match plans.iter().find(|plan| !names.insert(&plan.name)) {
        Some(plan) => Err(Error::Invalid(format!(
            "two interfaces are to be called {}",
            plan.name
        ))),
        None => Ok(()),
    }
}

/// Finds the link of each plan.
fn assign(links: Vec<Link>, plans: Vec<Plan>) -> Result<Vec<Match>> {
    let mut taken = HashSet::new();
    let mut matches = Vec::with_capacity(plans.len());
    for plan in plans {
        let link = links
            .iter()
            .find(|link| link.mac == Some(plan.mac) && !taken.contains(&link.index));
        let link = link.ok_or_else(|| {
            Error::State(format!(
                "the guest has no network card {} for {}",
                plan.mac, plan.name
            ))
        })?;
        if link.is_up {
            let what = format!("{} has been set up before", link.name);
            return Err(Error::State(what));
        }
        taken.insert(link.index);
        matches.push(Match {
            link: link.clone(),
            plan,
        });
    }
    Ok(matches)
}

/// Names the links, by way of names that nobody has.
fn rename(netlink: &mut Netlink, matches: &[Match]) -> Result<()> {
    let renamed = || {
        matches
            .iter()
            .filter(|found| found.link.name != found.plan.name)
    };
    let mut rename = |link: &Link, name: &str| {
        netlink
            .rename(link.index, name)
            .map_err(|why| Error::system(format_args!("cannot call {} {name}", link.name), why))
    };
    for Match { link, .. } in renamed() {
        rename(link, &format!("orlop-{}", link.index))?;
    }
    for Match { link, plan } in renamed() {
        rename(link, &plan.name)?;
    }
    Ok(())
}

fn set_up(netlink: &mut Netlink, link: Index, plan: &Plan) -> Result<()> {
    let name = &plan.name;
    netlink.set_mtu(link, plan.mtu).map_err(|why| {
        Error::system(
            format_args!("cannot set the MTU of {name} to {}", plan.mtu),
            why,
        )
    })?;
    for address in &plan.addresses {
        netlink.add_address(link, address).map_err(|why| {
            Error::system(
                format_args!("cannot give {name} the address {}", address.address),
                why,
            )
        })?;
    }
    netlink
        .set_up(link)
        .map_err(|why| Error::system(format_args!("cannot set {name} up"), why))
}

fn connect(netlink: &mut Netlink, link: Index, plan: &Plan) -> Result<()> {
    let name = &plan.name;
    for neighbour in &plan.neighbours {
        netlink.add_neighbour(link, neighbour).map_err(|why| {
            Error::system(
                format_args!("cannot give {name} the neighbour {}", neighbour.address),
                why,
            )
        })?;
    }
    // A gateway must be reached by a route itself.
    let (direct, by_gateway): (Vec<_>, Vec<_>) = plan
        .routes
        .iter()
        .partition(|route| route.gateway.is_none());
    for route in direct.into_iter().chain(by_gateway) {
        let to = route.destination;
        netlink.add_route(link, route).map_err(|why| {
            Error::system(
                format_args!(
                    "cannot give {name} the route to {}/{}",
                    to.address, to.length
                ),
                why,
            )
        })?;
    }
    Ok(())
}
