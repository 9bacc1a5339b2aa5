use super::*;

const PATIENCE: Duration = Duration::from_secs(10);

fn source(net: u8, last: usize) -> Source {
    Source::V4([10, net, (last / 256) as u8, (last % 256) as u8])
}

fn enter(guard: &mut Guard, source: Source, now: Instant) -> (u64, Option<u64>) {
    match guard.enter(source, now) {
        Entry::Place { number, instead_of } => (number, instead_of),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_source_crowds_out_itself() {
    let now = Instant::now();
    let mut guard = Guard::new(PATIENCE);
    let (friend, _) = enter(&mut guard, source(1, 0), now);
    for _ in 0..10_000 {
        let (_, loser) = enter(&mut guard, source(2, 0), now);
        assert_ne!(loser, Some(friend));
    }
    assert_eq!(guard.places.len(), 1 + PENDING_OF_ADDRESS_MAX);
}

#[test]
fn few_sources_crowd_out_themselves() {
    let now = Instant::now();
    let mut guard = Guard::new(PATIENCE);
    for attempt in 0..10_000 {
        enter(&mut guard, source(2, attempt % 8), now);
    }
    let (friend, loser) = enter(&mut guard, source(1, 0), now);
    assert!(loser.is_some());
    for attempt in 0..10_000 {
        let (_, loser) = enter(&mut guard, source(2, attempt % 8), now);
        assert_ne!(loser, Some(friend));
    }
    assert_eq!(guard.places.len(), PENDING_MAX);
    assert_eq!(guard.held.values().sum::<usize>(), PENDING_MAX);
}

/// Ten thousand machines, each with one connection: only friends of lately stay.
#[test]
fn friends_do_not_give_way_to_many_sources() {
    let now = Instant::now();
    let mut guard = Guard::new(PATIENCE);
    guard.welcome(source(1, 0), true, now);
    guard.welcome(source(1, 1), false, now);
    let (friend, _) = enter(&mut guard, source(1, 0), now);
    let (unknown, _) = enter(&mut guard, source(1, 1), now);
    let mut losers = Vec::new();
    for stranger in 0..10_000 {
        losers.extend(enter(&mut guard, source(2, stranger), now).1);
    }
    assert!(!losers.contains(&friend) && losers.contains(&unknown));
    // A day later it is a stranger.
    let later = now + FRIENDS_FOR;
    assert_eq!(enter(&mut guard, source(3, 0), later).1, Some(friend));
}

#[test]
fn a_house_full_of_friends_has_places_for_friends_alone() {
    let now = Instant::now();
    let mut guard = Guard::new(PATIENCE);
    for friend in 0..=PENDING_MAX {
        guard.welcome(source(1, friend), true, now);
    }
    for friend in 0..PENDING_MAX {
        assert_eq!(enter(&mut guard, source(1, friend), now).1, None);
    }
    assert_eq!(guard.enter(source(2, 0), now), Entry::Full);
    assert!(enter(&mut guard, source(1, PENDING_MAX), now).1.is_some());
}

#[test]
fn who_is_not_proven_to_be_anywhere_takes_nobodys_place() {
    let now = Instant::now();
    let mut guard = Guard::new(PATIENCE);
    for _ in 0..UNPROVEN_MAX {
        enter(&mut guard, Source::Unproven, now);
    }
    assert_eq!(guard.enter(Source::Unproven, now), Entry::Prove);
    guard.leave(1);
    assert!(guard.enter(Source::Unproven, now) != Entry::Prove);
    guard.leave(2);
    // Under load nobody has to give way to it.
    for stranger in 0..=LOADED_ABOVE - UNPROVEN_MAX + 1 {
        assert_eq!(enter(&mut guard, source(2, stranger), now).1, None);
    }
    assert_eq!(guard.enter(Source::Unproven, now), Entry::Prove);
}

#[test]
fn under_load_strangers_have_less_time() {
    let now = Instant::now();
    let mut guard = Guard::new(PATIENCE);
    guard.welcome(source(1, 0), true, now);
    let (friend, _) = enter(&mut guard, source(1, 0), now);
    let (stranger, _) = enter(&mut guard, source(2, 0), now);
    assert_eq!(guard.due(now), Some(now + PATIENCE));
    for other in 1..LOADED_ABOVE {
        enter(&mut guard, source(3, other), now + PATIENCE_UNDER_LOAD);
    }
    assert_eq!(guard.due(now), Some(now + PATIENCE_UNDER_LOAD));
    assert_eq!(guard.overdue(now + PATIENCE_UNDER_LOAD), Some(stranger));
    guard.leave(stranger);
    assert_eq!(guard.overdue(now + PATIENCE_UNDER_LOAD), None);
    assert_eq!(guard.overdue(now + PATIENCE), Some(friend));
    guard.leave(friend);
    assert_eq!(guard.places.len(), LOADED_ABOVE - 1);
    assert_eq!(guard.overdue(now + PATIENCE), None);
}
