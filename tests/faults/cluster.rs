//! A RabbitMQ cluster of three nodes, all three given to the server. Whatever happens to the node that it is on,
//! sessions stay, and events flow again through another. Where the queue went with its node, what is missed lies in the
//! gap that is told; where it is on a node that lives on, nothing is missed.

use crate::broker::{OURS, close_our_connection};
use crate::scene::Scene;
use support::broker::{Broker, Cluster};

#[test]
fn a_node_that_is_killed_stopped_left_frozen_or_cut_off_costs_a_gap_notice_at_most_and_the_next_serves()
 {
    let Some(cluster) = Cluster::start(3) else {
        return;
    };
    let [one, two, three] = cluster.nodes() else {
        panic!("three nodes");
    };
    let (second, third) = (two.url(), three.url());
    let args = ["--amqp", &second, "--amqp", &third];
    // The publisher is on the third, to which nothing happens.
    let scene = Scene::open(three, &one.url(), &args);
    // Its log leaves out what repeats, so the cluster is asked.
    let is_on = |node: &Broker| {
        let connections = three.ctl(&["list_connections", "pid", "client_properties"]);
        let ours = connections.lines().find(|line| line.contains(OURS));
        let name = format!("<blackhole{}@", node.port());
        assert!(
            ours.is_some_and(|ours| ours.starts_with(&name)),
            "{name}: {connections}"
        );
    };
    is_on(one);

    one.kill9();
    scene.until_back(1);
    is_on(two);
    one.restart();
    cluster.until_whole();

    two.stop();
    scene.until_back(2);
    is_on(three);
    two.restart();
    cluster.until_whole();

    // From here on the queue is on the third.
    close_our_connection(three);
    scene.server.wait_for_metric("amqp_connects_total", 4);
    scene.until_back(2);
    is_on(one);

    one.pause();
    scene.server.wait_for_metric("amqp_connects_total", 5);
    scene.until_back(2);
    is_on(two);
    // One that thaws after the others gave it up may stay apart from them; its operator starts it again.
    one.kill9();
    one.restart();
    cluster.until_whole();

    cluster.part(1);
    scene.server.wait_for_metric("amqp_connects_total", 6);
    scene.until_back(2);
    is_on(three);
    cluster.heal(1);
    cluster.until_whole();

    let (server, _) = scene.close("a cluster", 2);
    assert_eq!(server.metric("source_outages_total"), 5);
}
