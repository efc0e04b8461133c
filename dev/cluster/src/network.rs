//! The addresses of a cluster with nodes, and the network namespace that its machines are plugged into.
//!
//! A cluster has 10.N.0.0/16 for itself. The hub is a namespace with a bridge, in which the API server and the name server
//! run; each node is a namespace with a cable to the bridge, and so is the machine itself, so that tests reach nodes, pods
//! and Services as anybody in the same network would. The machine's own firewall and forwarding play no part.

use std::fs;
use std::io::Write;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};

use crate::folder::Folder;
use crate::room::{Door, Room};
use crate::tools::NodeTools;

const FIRST: u8 = 100;
const LAST: u8 = 227;
const BRIDGE: &str = "hub";

/// The addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Plan {
    octet: u8,
}

impl Plan {
    fn ip(self, third: u8, fourth: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, self.octet, third, fourth)
    }

    /// Where the API server and the name server listen.
    pub(crate) fn hub(self) -> Ipv4Addr {
        self.ip(0, 1)
    }

    /// The machine itself.
    pub(crate) fn machine(self) -> Ipv4Addr {
        self.ip(0, 254)
    }

    pub(crate) fn node(self, index: u8) -> Ipv4Addr {
        self.ip(0, 11 + index)
    }

    pub(crate) fn pods_of(self, index: u8) -> String {
        format!("{}/24", self.ip(128 + index, 0))
    }

    pub(crate) fn pods(self) -> String {
        format!("{}/17", self.ip(128, 0))
    }

    pub(crate) fn services(self) -> String {
        format!("{}/18", self.ip(64, 0))
    }

    /// The Service of the API server, which is always the first.
    pub(crate) fn api_service(self) -> Ipv4Addr {
        self.ip(64, 1)
    }

    pub(crate) fn dns_service(self) -> Ipv4Addr {
        self.ip(64, 10)
    }

    /// What names on this machine that belong to the cluster begin with.
    pub(crate) fn prefix(self) -> String {
        format!("mr{}", self.octet)
    }

    /// Adds the routes to pods, all of which lie behind their nodes.
    fn pod_routes(self, nodes: u8, except: Option<u8>) -> String {
        let others = (0..nodes).filter(|&index| Some(index) != except);
        others.map(|index| format!("route add {} via {}\n", self.pods_of(index), self.node(index))).collect()
    }
}

/// The hub and its cable to the machine, which both go when their processes do.
#[derive(Debug)]
pub(crate) struct Network {
    pub(crate) plan: Plan,
    pub(crate) hub: Room,
    nodes: u8,
    ip: PathBuf,
}

impl Network {
    /// Makes the hub for so many nodes.
    pub(crate) fn create(folder: &Folder, tools: &NodeTools, nodes: u8) -> Result<Self> {
        let hub = Room::hub(folder)?;
        let ip = tools.find("ip")?;
        let plan = plug_machine(&ip, &hub)?;
        let name = plan.prefix();
        let index = fs::read_to_string(format!("/sys/class/net/{name}/ifindex")).context("find the cable")?;
        // The guard reads it.
        let cable = format!("{}\n{name}\n{index}", ip.display());
        fs::write(folder.path().join("cable"), cable).context("note the cable")?;
        let network = Self { plan, hub, nodes, ip };
        let (hub, prefix) = (plan.hub(), plan.prefix());
        let mut inside = format!(
            "link set lo up\n\
             link add {BRIDGE} type bridge\n\
             link set machine master {BRIDGE} up\n\
             link set {BRIDGE} up\n\
             addr add {hub}/24 dev {BRIDGE}\n"
        );
        inside += &plan.pod_routes(nodes, None);
        network.batch(Some(network.hub.door()), &inside)?;
        network.hub.door().write_sysctl("net/ipv4/ip_forward", "1")?;
        // Services are reached through the first node, as through any other.
        let outside = format!(
            "addr add {}/24 dev {prefix}\nlink set {prefix} up\n{}route add {} via {}\n",
            plan.machine(),
            plan.pod_routes(nodes, None),
            plan.services(),
            plan.node(0),
        );
        network.batch(None, &outside)?;
        Ok(network)
    }

    /// Gives a node its cable, its address and its routes.
    pub(crate) fn plug(&self, index: u8, room: Door) -> Result<()> {
        let port = port(index);
        let cable = format!(
            "link add {port} type veth peer name eth0 netns {}\nlink set {port} master {BRIDGE} up\n",
            room.pid()
        );
        self.batch(Some(self.hub.door()), &cable)?;
        let Self { plan, nodes, .. } = self;
        let inside = format!(
            "link set lo up\naddr add {}/24 dev eth0\nlink set eth0 up\nroute add default via {}\n{}",
            plan.node(index),
            plan.hub(),
            plan.pod_routes(*nodes, Some(index)),
        );
        self.batch(Some(room), &inside)?;
        room.write_sysctl("net/ipv4/ip_forward", "1")
    }

    /// Pulls a node's cable, or plugs it in again.
    pub(crate) fn connect(&self, index: u8, connected: bool) -> Result<()> {
        let state = if connected { "up" } else { "down" };
        self.batch(Some(self.hub.door()), &format!("link set {} {state}\n", port(index)))
    }

    fn batch(&self, room: Option<Door>, lines: &str) -> Result<()> {
        let mut command = room.map_or_else(|| Command::new(&self.ip), |room| room.command(&self.ip));
        ip(command.args(["-batch", "-"]), lines)
    }
}

fn port(index: u8) -> String {
    format!("node{}", index + 1)
}

/// Lays the cable between the machine and the hub, whose name nobody else has, and so finds addresses that nobody has.
fn plug_machine(program: &PathBuf, hub: &Room) -> Result<Plan> {
    let routes = fs::read_to_string("/proc/net/route").context("read the machine's routes")?;
    let taken = taken_octets(&routes);
    let mut refused = None;
    for plan in (FIRST..=LAST).filter(|octet| !taken.contains(octet)).map(|octet| Plan { octet }) {
        let cable =
            format!("link add {} type veth peer name machine netns {}\n", plan.prefix(), hub.door().pid());
        match ip(Command::new(program).args(["-batch", "-"]), &cable) {
            Ok(()) => return Ok(plan),
            Err(error) if error.to_string().contains("File exists") => refused = Some(error),
            Err(error) => return Err(error),
        }
    }
    let full = || anyhow!("the machine has routes to all of 10.{FIRST} to 10.{LAST}");
    Err(refused.unwrap_or_else(full))
}

/// Finds the second octets of the networks below 10 that routes lead to.
fn taken_octets(routes: &str) -> Vec<u8> {
    let destinations = routes.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1));
    // The address stands there as a little-endian number in hexadecimal digits.
    let numbers = destinations.filter_map(|text| u32::from_str_radix(text, 16).ok());
    numbers.map(u32::to_le_bytes).filter(|octets| octets[0] == 10).map(|octets| octets[1]).collect()
}

fn ip(command: &mut Command, lines: &str) -> Result<()> {
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().context("start ip")?;
    let mut input = child.stdin.take().context("write to ip")?;
    input.write_all(lines.as_bytes()).context("write to ip")?;
    drop(input);
    let output = child.wait_with_output().context("wait for ip")?;
    if !output.status.success() {
        bail!("set up the network: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_pods_and_services_of_a_cluster_do_not_overlap() {
        let plan = Plan { octet: 101 };
        assert_eq!(plan.node(1).to_string(), "10.101.0.12");
        assert_eq!(plan.pods_of(1), "10.101.129.0/24");
        assert_eq!(plan.pods(), "10.101.128.0/17");
        assert_eq!(plan.services(), "10.101.64.0/18");
        assert_eq!(plan.dns_service().to_string(), "10.101.64.10");
    }

    #[test]
    fn each_machine_has_routes_to_the_pods_of_the_others() {
        let plan = Plan { octet: 100 };
        assert_eq!(plan.pod_routes(2, Some(0)), "route add 10.100.129.0/24 via 10.100.0.12\n");
        assert_eq!(plan.pod_routes(2, None).lines().count(), 2);
    }

    #[test]
    fn networks_that_routes_lead_to_are_taken() {
        let routes = "Iface\tDestination\tGateway\neth0\t00000000\t0100A8C0\nmr101\t0000650A\t00000000\n";
        assert_eq!(taken_octets(routes), [101]);
    }
}
