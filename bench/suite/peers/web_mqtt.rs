//! RabbitMQ's own way to websocket clients, its web-mqtt plugin, published to by MQTT over TCP.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};

use super::mosquitto::mqtt_arguments;
use super::{ANSWER_PATIENCE, MqttPublisher, children, peer};
use crate::running::SERVER_CORE;
use crate::subject::{Batch, Candidate, Scenario, Subject};
use support::broker::{self, Broker};

/// A session costs it hundreds of KB and milliseconds of CPU.
pub(crate) const WEB_MQTT: Candidate = Candidate {
    sessions_max: Some(1_000),
    ..peer("rabbitmq-web-mqtt", |_| Ok(Box::new(WebMqtt::start()?)))
};

struct WebMqtt {
    publisher: MqttPublisher,
    broker: Broker,
    pids: Vec<u32>,
}

impl WebMqtt {
    fn start() -> io::Result<Self> {
        broker::installed()?;
        let broker =
            Broker::start_with(&["--web-mqtt", "--core", SERVER_CORE]).map_err(io::Error::other)?;
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, broker.mqtt_port()))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_PATIENCE))?;
        let publisher = MqttPublisher::connect(stream)?;
        let node = broker.pid();
        // Its helper, but not the programs which that starts now and then and which end at once.
        let mut pids = vec![node];
        pids.extend(children(node)?);
        Ok(Self {
            publisher,
            broker,
            pids,
        })
    }
}

impl Subject for WebMqtt {
    fn pids(&self) -> Vec<u32> {
        self.pids.clone()
    }

    fn address(&self) -> String {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.broker.websocket_port())).to_string()
    }

    fn load_arguments(&self, scenario: Scenario, _: u32) -> Vec<String> {
        mqtt_arguments("/ws", scenario)
    }

    fn publish(&mut self, batch: Batch) -> io::Result<()> {
        self.publisher.publish(batch)
    }
}
