//! What several programs of this folder use.
//!
//! | module | owns |
//! |---|---|
//! | [`frames`], [`reader`], [`socket`] | one websocket client: its frames, its stream, its socket |
//! | [`mqtt`] | the packets of an MQTT client |
//! | [`process`] | CPU time and memory of processes |
//! | [`numbers`] | numbers on the command line |
//! | [`programs`] | where the other programs of the build are |

pub mod frames;
pub mod mqtt;
pub mod numbers;
pub mod process;
pub mod programs;
pub mod reader;
pub mod socket;
