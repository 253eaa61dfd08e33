//! Waits for less than a millisecond without using the processor. The runtime's timers count whole milliseconds.

use std::io;
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::{Interest, unix::AsyncFd};

/// Waits until `until`. Needs a tokio runtime with its drivers.
pub(crate) async fn pause(until: Instant) {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return;
    }
    // If no file descriptor is free, a coarse wait will do.
    if sleep(left).await.is_err() {
        tokio::time::sleep(left).await;
    }
}

async fn sleep(left: Duration) -> io::Result<()> {
    let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
    let it_value = Timespec::try_from(left).map_err(io::Error::other)?;
    let once = Itimerspec { it_interval: Timespec::default(), it_value };
    timerfd_settime(&timer, TimerfdTimerFlags::empty(), &once)?;
    #[expect(
        deprecated,
        reason = "its successor is unsafe, for descriptors that somebody else may close: this one is ours"
    )]
    let timer = AsyncFd::with_interest(timer, Interest::READABLE)?;
    timer.readable().await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_never_ends_early() {
        for micros in [0, 1, 300, 1500] {
            let until = Instant::now() + Duration::from_micros(micros);
            pause(until).await;
            assert!(Instant::now() >= until, "{micros}");
        }
    }
}
