//! What races, under schedules that a machine seldom takes: shuttle runs threads in thousands of orders, and tells when none can go on.

mod admission;
mod residence;

/// What the sources under test are made of.
mod sync {
    pub(super) use shuttle::sync::{Mutex, MutexGuard};
}

/// Orders that are tried of each test.
const ORDERS: usize = 3000;
