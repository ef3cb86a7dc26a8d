//! Worlds to begin a case with.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::model::TOKENS;
use crate::rights::Rights;
use crate::world::World;
use support::wire::UPGRADE_REQUEST;

/// A token file, and the directory that it vanishes with.
pub(crate) fn token_file() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("tokens.json");
    std::fs::write(&path, Rights::default().to_file()).expect("a token file");
    (directory, path)
}

/// A world whose source is up and whose clients, all of the first account, are upgraded and read everything.
pub(crate) fn world_of_readers(clients: usize, bindings: &[&'static str], tokens: &Path) -> World {
    readers_in(World::new(1, tokens), clients, bindings)
}

pub(crate) fn readers_in(mut world: World, clients: usize, bindings: &[&'static str]) -> World {
    (world.times.ping_interval, world.times.idle_timeout) = (None, None);
    world.reactor.hub.limits.liveness = world.times.rules();
    world.reactor.hub.limits.rate = None;
    world.reactor.hub.limits.subscriptions_max = usize::MAX;
    world.source_comes_or_goes();
    while world.clients.len() < clients {
        world.connect();
        let client = world.clients.last_mut().expect("just connected");
        client.token = TOKENS[0];
        let mut wire = client.wire.borrow_mut();
        (wire.room, wire.grain) = (usize::MAX / 2, usize::MAX);
        let whole = UPGRADE_REQUEST.as_bytes();
        wire.to_server.clear();
        wire.send(whole);
    }
    for client in &mut world.clients {
        for binding in bindings {
            client.subscribe((0, binding));
        }
    }
    world.settle();
    assert!(
        world
            .clients
            .iter()
            .all(|client| client.upgraded && client.asked.is_empty())
    );
    world
}
