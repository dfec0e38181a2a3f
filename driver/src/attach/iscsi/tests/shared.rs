//! Nodes that share a kernel: each has sessions, entries and an interface of its own, and leaves everybody else's alone.

use super::{
    super::{Attached, Initiator},
    LONG, disks,
    world::{World, portal, volume},
};

/// How many sessions and entries there are, whoever's.
fn left(world: &World) -> (usize, usize) {
    let (sessions, _, entries, _) = world.left();
    (sessions, entries)
}

async fn detach(initiator: &Initiator, attached: &Attached) {
    let disks = disks(attached);
    initiator.detach(&disks, None).await.expect("detaches");
}

#[tokio::test]
async fn two_nodes_and_an_administrator_use_one_target_and_never_each_others_sessions() {
    let (a, b) = (portal("192.0.2.1:3260"), portal("192.0.2.2:3260"));
    let world = World::new(&[&a, &b]);
    world.administrator(&a);
    let one = world.initiator_with(world.node_config("n1"));
    let two = world.initiator_with(world.node_config("n2"));
    let context = volume(&[&a, &b]);
    let (of_one, of_two) = tokio::join!(one.attach(&context, LONG), two.attach(&context, LONG));
    let (of_one, of_two) = (of_one.expect("attaches"), of_two.expect("attaches"));
    assert_eq!((of_one.paths.len(), of_two.paths.len()), (2, 2));
    assert!(disks(&of_one).iter().all(|disk| !disks(&of_two).contains(disk)));
    assert_eq!(left(&world).0, 5, "two of each, and the administrator's");
    assert_eq!(world.interfaces(), ["storagelink-n1", "storagelink-n2"]);
    let named = |p| world.calls(p, "-I storagelink-n1 ") + world.calls(p, "-I storagelink-n2 ");
    assert_eq!(
        named(&a) + named(&b),
        world.state().calls.len(),
        "no call without an interface"
    );

    detach(&one, &of_one).await;
    assert_eq!(left(&world).0, 3);
    assert_eq!(world.interfaces(), ["storagelink-n2"]);
    two.sweep().await.expect("sweeps");
    assert_eq!(
        disks(&two.attach(&context, LONG).await.expect("attaches")),
        disks(&of_two),
        "the other's paths are what they were"
    );
    detach(&two, &of_two).await;
    assert_eq!(left(&world), (1, 1), "the administrator's session and entry");
    assert!(world.interfaces().is_empty());
}

#[tokio::test]
async fn an_interface_that_was_left_behind_goes_and_one_in_use_stays() {
    let a = portal("192.0.2.1:3260");
    let world = World::new(&[&a]);
    let config = world.node_config("n1");
    let name = config.interface.clone().expect("has one").initiator;
    let one = world.initiator_with(config);
    let attached = one.attach(&volume(&[&a]), LONG).await.expect("attaches");
    detach(&one, &attached).await;
    let iface = |what: &str| world.make_interface("storagelink-n1", what);
    iface("iqn.2026-11.com.example:old");
    let by_hand = world.kernel.log_in_as(&a, Some(&name));
    one.sweep().await.expect("sweeps");
    assert_eq!(world.interfaces(), ["storagelink-n1"], "somebody uses it by hand");
    world.kernel.sim.logout(by_hand);
    one.sweep().await.expect("sweeps");
    assert!(world.interfaces().is_empty());

    // One with an initiator name that is not this node's any more is put right before it is used.
    iface("iqn.2026-11.com.example:old");
    one.attach(&volume(&[&a]), LONG).await.expect("attaches");
    assert!(world.kernel.session_of(&a, Some(&name)).is_some());
}

#[tokio::test]
async fn a_session_without_a_known_initiator_name_is_nobodys() {
    let a = portal("192.0.2.1:3260");
    let world = World::new(&[&a]);
    world.kernel.log_in(&a);
    let one = world.initiator_with(world.node_config("n1"));
    one.attach(&volume(&[&a]), LONG).await.expect("attaches");
    assert_eq!(left(&world).0, 2, "it made one of its own");
}
