//! Who gives way when bytes are short: those whose clients move them too slowly for what they hold.
//!
//! Whoever waits for its client holds bytes, and owes a least rate for them: all of them within [`PACE`], at least
//! [`LEAST`] a second. Each byte that the client moves, in either direction, pays for a time, but for none to come: a
//! burst buys no silence. While nobody lacks bytes nobody is ended for this; then the deadlines count alone.

use std::cmp::Reverse;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use modelhost_core::budget::{ByteBudget, Charge};

use super::{Connections, WAITING, Watch};

/// Within this time a client at the least rate moves as many bytes as are held for it.
const PACE: Duration = Duration::from_secs(10);

/// The least rate for those who hold little, in bytes a second.
const LEAST: u64 = 1 << 10;

/// How far behind the least rate a client may be.
const GRACE: Duration = Duration::from_secs(3);

/// The share of a budget that is made free at once.
const SHARE: u64 = 8;

/// How often it is looked whether bytes are short.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// An answer that was not read within this time takes a task and a place on its connection, too.
const AT_ONCE: Duration = Duration::from_millis(500);

/// What a request holds while its client is to move bytes.
pub(super) struct Held {
    pub(super) watch: Arc<Watch>,
    /// Of an answer: when it must be gone.
    pub(super) until: Option<Instant>,
    answer: Option<Charge>,
    waits: Option<Charge>,
    since: Instant,
    /// Up to when the client has moved enough.
    paid: Instant,
    /// What it had moved when that was found.
    seen: u64,
    /// It was told to give way.
    is_over: bool,
}

impl Held {
    /// A request that waits for its client.
    pub(super) fn waiting(watch: &Arc<Watch>, waits: Charge) -> Self {
        Self::new(watch, None, None, Some(waits))
    }

    /// An answer that must be gone by then.
    pub(super) fn sending(watch: &Arc<Watch>, charge: Option<Charge>, until: Instant) -> Self {
        Self::new(watch, Some(until), charge, None)
    }

    fn new(
        watch: &Arc<Watch>,
        until: Option<Instant>,
        answer: Option<Charge>,
        waits: Option<Charge>,
    ) -> Self {
        let (now, seen) = (Instant::now(), watch.moved.load(Ordering::Relaxed));
        Self { watch: Arc::clone(watch), until, answer, waits, since: now, paid: now, seen, is_over: false }
    }

    /// Bytes held, of this budget or of any.
    fn bytes(&self, of: Option<&ByteBudget>) -> u64 {
        let fits = |budget: &ByteBudget| of.is_none_or(|of| budget.is_within(of));
        let charges = self.answer.iter().chain(&self.waits).filter(|charge| fits(charge.budget()));
        let body = self.watch.body.lock().unwrap_or_else(PoisonError::into_inner);
        let body = body.as_ref().filter(|(budget, _)| self.until.is_none() && fits(budget));
        charges.map(Charge::bytes).sum::<u64>() + body.map_or(0, |(_, bytes)| *bytes)
    }

    /// Counts what moved, and charges an answer that was not read at once; one that finds no room has had its time.
    pub(super) fn settle(&mut self, now: Instant, waits: &Arc<ByteBudget>) {
        self.pay(now);
        if self.until.is_some() && self.waits.is_none() && now.saturating_duration_since(self.since) > AT_ONCE
        {
            let mut charge = waits.charge();
            match charge.grow(WAITING) {
                Ok(()) => self.waits = Some(charge),
                Err(_) => self.until = Some(now),
            }
        }
    }

    fn pay(&mut self, now: Instant) {
        let moved = self.watch.moved.load(Ordering::Relaxed);
        let rate = (self.bytes(None) / PACE.as_secs()).max(LEAST);
        let micros = (moved - self.seen).saturating_mul(1_000_000) / rate;
        self.paid = self.paid.checked_add(Duration::from_micros(micros)).map_or(now, |paid| paid.min(now));
        self.seen = moved;
    }
}

/// Makes room on all ports when bytes are short.
pub(crate) struct Room {
    pub(crate) budgets: Vec<Arc<ByteBudget>>,
    pub(crate) listeners: Vec<Arc<Connections>>,
}

impl Room {
    /// Looks after it, for ever.
    pub(crate) async fn keep(self) {
        let mut look = tokio::time::interval(LOOK_EVERY);
        loop {
            look.tick().await;
            for short in self.budgets.iter().flat_map(|budget| budget.take_short()) {
                self.make(&short, Instant::now());
            }
        }
    }

    /// Lets those give way who hold bytes of this budget and are behind, the most bytes for the longest time first,
    /// until a share of it is on its way back.
    pub(super) fn make(&self, short: &ByteBudget, now: Instant) {
        let (mut coming, mut behind) = (0, Vec::new());
        for connections in &self.listeners {
            for connection in connections.all().values() {
                for (id, held) in &mut connection.state().held {
                    let bytes = held.bytes(Some(short));
                    held.pay(now);
                    let time = now.saturating_duration_since(held.paid);
                    if held.is_over {
                        coming += bytes;
                    } else if bytes > 0 && time > GRACE {
                        let weight = u128::from(bytes) * time.as_millis();
                        behind.push((Reverse(weight), bytes, *id, Arc::clone(connection)));
                    }
                }
            }
        }
        behind.sort_unstable_by_key(|(weight, ..)| *weight);
        for (_, bytes, id, connection) in behind {
            if coming >= short.limit() / SHARE {
                break;
            }
            if let Some(held) = connection.state().held.get_mut(&id) {
                coming += bytes;
                held.give_way(now);
            }
        }
    }
}

impl Held {
    fn give_way(&mut self, now: Instant) {
        self.is_over = true;
        if self.until.is_some() {
            self.until = Some(now);
        } else {
            self.watch.is_over.store(true, Ordering::Relaxed);
            self.watch.waiter.wake();
        }
    }
}

#[cfg(test)]
mod tests;
