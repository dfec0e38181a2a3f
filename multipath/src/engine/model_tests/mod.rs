//! Whatever happens, in any order and at any time, the engine's promises hold: random sequences of events on the simulated kernel, with the real
//! engine and its monitor, in virtual time.
//!
//! [`events`] is what may happen, [`world`] a host with an array, a plugin and the events' effects, [`promises`] what must hold all the while.
//! The kernel's own rules ([`SimKernel::violations`]) are judged at each call: no path of another disk enters a table or is made active by
//! a swap, no swap while I/O is stuck, no command to a blocked device, the device of a map's only path is not deleted, failed marks survive a
//! swap, the last path is not failed while the map does not queue, nothing that is open is removed.
//!
//! [`SimKernel::violations`]: crate::host::sim::SimKernel::violations

mod events;
mod promises;
mod world;

use proptest::{
    collection::vec,
    prelude::{Just, prop_oneof},
    test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner},
};

use super::tests;
use crate::{policy::NoPathRetry, worker::virtual_time};

/// Sequences that are tried without `STORAGELINK_MODEL_CASES`. The same ones each time: more only continue the row.
const CASES: u32 = 40;
/// Events in a sequence at most.
const LONGEST: usize = 24;

#[test]
fn whatever_happens_the_engines_promises_hold() {
    let cases =
        std::env::var("STORAGELINK_MODEL_CASES").map_or(CASES, |cases| cases.parse().expect("a number"));
    let config = Config {
        cases,
        max_shrink_iters: 2_000,
        failure_persistence: None,
        ..Config::default()
    };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let retry = prop_oneof![Just(NoPathRetry::For(tests::SHORT)), Just(NoPathRetry::Fail)];
    let history = (retry, vec(events::step(), 1..=LONGEST));
    let outcome = runner.run(&history, |(retry, steps)| {
        virtual_time::run(world::play(retry, &steps)).map_err(TestCaseError::fail)
    });
    match outcome {
        Ok(()) => {}
        Err(TestError::Fail(reason, (retry, steps))) => {
            panic!("{reason}\nwithout a path: {retry}; after {steps:#?}")
        }
        Err(error) => panic!("{error}"),
    }
}
