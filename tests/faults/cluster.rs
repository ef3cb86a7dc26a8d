//! A RabbitMQ cluster of three nodes, all three given to the server. Whatever happens to the node that it is on,
//! sessions stay, events flow again through another, and what is missed lies in the gap that is told.

use crate::broker::close_our_connection;
use crate::scene::Scene;
use support::broker::Cluster;

#[test]
fn a_node_that_is_killed_stopped_left_frozen_or_cut_off_costs_a_gap_notice_and_the_next_serves() {
    let Some(cluster) = Cluster::start(3) else {
        return;
    };
    let [one, two, three] = &cluster.nodes()[..] else {
        panic!("three nodes");
    };
    let (second, third) = (two.url(), three.url());
    let args = ["--amqp", &second, "--amqp", &third];
    // The publisher is on the third, to which nothing happens.
    let scene = Scene::open(three, &one.url(), &args);
    let is_on = |node: &support::broker::Broker, times: usize| {
        let line = format!("connected to 127.0.0.1:{} ", node.port());
        let log = scene.server.log();
        assert_eq!(log.matches(&line).count(), times, "{log}");
    };
    is_on(one, 1);

    one.kill9();
    scene.until_back(1);
    is_on(two, 1);
    one.restart();
    cluster.until_whole();

    two.stop();
    scene.until_back(2);
    is_on(three, 1);
    two.restart();
    cluster.until_whole();

    close_our_connection(three);
    scene.until_back(3);
    is_on(one, 2);

    one.pause();
    scene.until_back(4);
    is_on(two, 2);
    one.resume();
    cluster.until_whole();

    cluster.part(1);
    scene.until_back(5);
    is_on(three, 2);
    cluster.heal(1);
    cluster.until_whole();

    let (server, _) = scene.close("a cluster", 5);
    assert_eq!(server.metric("source_outages_total"), 5);
}
