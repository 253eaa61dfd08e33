//! Race tests. shuttle runs threads in thousands of orders, and detects deadlocks.

mod admission;
mod residence;

/// What the tested sources are made of.
mod sync {
    pub(super) use shuttle::sync::{Mutex, MutexGuard};
}

/// How many orders each test tries.
const ORDERS: usize = 3000;
