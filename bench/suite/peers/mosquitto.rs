//! Mosquitto with its websockets listener: MQTT, one thread.

use std::io;
use std::net::SocketAddr;

use super::{
    MqttPublisher, OWN_TOPIC, TOPIC, await_listening, find, free_address, peer, write_file,
};
use crate::running::{Running, SERVER_CORE};
use crate::subject::{Batch, Candidate, Scenario, Subject};

pub(crate) const MOSQUITTO: Candidate = peer("mosquitto", |_| Ok(Box::new(Mosquitto::start()?)));

struct Mosquitto {
    publisher: MqttPublisher,
    running: Running,
    websockets: SocketAddr,
    _dir: tempfile::TempDir,
}

impl Mosquitto {
    fn start() -> io::Result<Self> {
        let program = find("mosquitto", "mosquitto")?;
        let (publishers, websockets) = (free_address()?, free_address()?);
        let dir = tempfile::tempdir()?;
        // Started by root it would become another user, who cannot enter the directory. Its websockets library takes
        // an IPv4 address only when IPv6 is ruled out.
        let configuration = format!(
            "user root\n\
             persistence false\n\
             allow_anonymous true\n\
             max_connections -1\n\
             set_tcp_nodelay true\n\
             log_dest none\n\
             listener {} 127.0.0.1\n\
             listener {} 127.0.0.1\n\
             socket_domain ipv4\n\
             protocol websockets\n",
            publishers.port(),
            websockets.port()
        );
        let file = write_file(dir.path(), "mosquitto.conf", &configuration)?;
        let mut running = Running::start_silent(SERVER_CORE, &program, &["-c".into(), file])?;
        await_listening(&mut running, websockets)?;
        let publisher = MqttPublisher::connect(await_listening(&mut running, publishers)?)?;
        Ok(Self {
            publisher,
            running,
            websockets,
            _dir: dir,
        })
    }
}

impl Subject for Mosquitto {
    fn pids(&self) -> Vec<u32> {
        vec![self.running.pid()]
    }

    fn address(&self) -> String {
        self.websockets.to_string()
    }

    fn load_arguments(&self, scenario: Scenario, _: u32) -> Vec<String> {
        mqtt_arguments("/mqtt", scenario)
    }

    fn publish(&mut self, batch: Batch) -> io::Result<()> {
        self.publisher.publish(batch)
    }
}

/// Arguments of the load generator for an MQTT server.
pub(super) fn mqtt_arguments(path: &str, scenario: Scenario) -> Vec<String> {
    let topic = match scenario {
        Scenario::Shared => TOPIC,
        Scenario::Own => OWN_TOPIC,
    };
    ["--dialect", "mqtt", "--path", path, "--binding", topic]
        .map(str::to_owned)
        .into()
}
