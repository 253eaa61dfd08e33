//! Shows challengers copies of answered requests, as far as there is room, and compares their answers with the
//! callers'.
//!
//! A copy never delays or changes the caller's answer. Copies that do not fit the queue are dropped and counted. Each
//! model has its own running copies and at most half of the queue, so that a slow challenger delays only copies of
//! its own model.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use modelhost_core::compare::distance_by_name;
use modelhost_core::event::{Agreement, Comparison, Role};
use modelhost_core::infer::{Deadline, InferRequest};
use modelhost_core::model::{ModelName, ModelVersion};
use modelhost_core::tensor::Tensor;

use crate::lifecycle::Config;
use crate::slot::Slot;

/// Longest time of a copy, waiting and running together. No caller waits for it.
const LIMIT: Duration = Duration::from_secs(30);

/// One model may take this part of the queue and its bytes, so that others have room.
const SHARE: usize = 2;

#[cfg(test)]
mod tests;

pub(crate) struct Mirror {
    /// Most waiting copies of all models.
    most: usize,
    most_bytes: usize,
    /// Most running copies of one model.
    concurrency: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Waiting and running copies, and their bytes.
    total: Load,
    /// Models with copies.
    lanes: HashMap<ModelName, Lane>,
}

/// The copies of one model. They do not wait for copies of others.
#[derive(Default)]
struct Lane {
    waiting: VecDeque<Copy>,
    load: Load,
    running: usize,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Load {
    copies: usize,
    bytes: usize,
}

impl Load {
    fn fits(self, bytes: usize, most: usize, most_bytes: usize) -> bool {
        self.copies < most && bytes <= most_bytes.saturating_sub(self.bytes)
    }

    fn add(&mut self, bytes: usize) {
        self.copies += 1;
        self.bytes += bytes;
    }

    fn remove(&mut self, bytes: usize) {
        self.copies -= 1;
        self.bytes -= bytes;
    }
}

struct Copy {
    served: ModelVersion,
    challenger: Arc<Slot>,
    request: Arc<InferRequest>,
    answer: Arc<Vec<Tensor>>,
    bytes: usize,
}

impl Mirror {
    pub(crate) fn new(config: &Config) -> Arc<Self> {
        Arc::new(Self {
            most: config.mirror_queue,
            most_bytes: config.mirror_bytes as usize,
            concurrency: config.mirror_concurrency,
            state: Mutex::default(),
        })
    }

    pub(crate) fn send(
        self: &Arc<Self>,
        served: ModelVersion,
        challengers: &[Arc<Slot>],
        request: &Arc<InferRequest>,
        answer: &Arc<Vec<Tensor>>,
    ) {
        let bytes = request.inputs.iter().chain(&**answer).map(|tensor| tensor.data().len()).sum();
        for challenger in challengers {
            let (request, answer) = (Arc::clone(request), Arc::clone(answer));
            let copy = Copy { served, challenger: Arc::clone(challenger), request, answer, bytes };
            if !self.queue(copy) {
                challenger.recorder.comparison(&Comparison { served, agreement: Agreement::Dropped });
            }
        }
    }

    /// Returns false if there is no room.
    fn queue(self: &Arc<Self>, copy: Copy) -> bool {
        let (model, bytes) = (&copy.challenger.version.model, copy.bytes);
        let mut state = self.state();
        let own = state.lanes.get(model).map(|lane| lane.load).unwrap_or_default();
        if !state.total.fits(bytes, self.most, self.most_bytes)
            || !own.fits(bytes, self.most.div_ceil(SHARE), self.most_bytes / SHARE)
        {
            return false;
        }
        state.total.add(bytes);
        let model = model.clone();
        let lane = state.lanes.entry(model.clone()).or_default();
        lane.load.add(bytes);
        lane.waiting.push_back(copy);
        if lane.running < self.concurrency {
            lane.running += 1;
            tokio::spawn(Arc::clone(self).work(model));
        }
        true
    }

    /// Runs copies of a model until none waits.
    async fn work(self: Arc<Self>, model: ModelName) {
        while let Some(copy) = self.next(&model) {
            let agreement = run(&copy).await;
            copy.challenger.recorder.comparison(&Comparison { served: copy.served, agreement });
            self.ended(&model, copy.bytes);
        }
    }

    /// Takes the next copy. If none waits, the worker ends.
    fn next(&self, model: &ModelName) -> Option<Copy> {
        let mut state = self.state();
        let lane = state.lanes.get_mut(model)?;
        let next = lane.waiting.pop_front();
        if next.is_none() {
            lane.running -= 1;
            if lane.running == 0 {
                state.lanes.remove(model);
            }
        }
        next
    }

    fn ended(&self, model: &ModelName, bytes: usize) {
        let mut state = self.state();
        state.total.remove(bytes);
        if let Some(lane) = state.lanes.get_mut(model) {
            lane.load.remove(bytes);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn run(copy: &Copy) -> Agreement {
    let mut request = InferRequest::clone(&copy.request);
    if request.conform(&copy.challenger.version.report.signature).is_err() {
        return Agreement::Failed;
    }
    let start = Instant::now();
    let deadline = Deadline::after(start, LIMIT);
    match copy.challenger.infer(Arc::new(request), start, deadline, Role::Challenger).await {
        Ok((outputs, _)) => compare(&copy.answer, &outputs),
        Err(_) => Agreement::Failed,
    }
}

/// Compares a challenger's outputs with the served ones by name. Numbers are compared by their largest |difference|.
pub fn compare(served: &[Tensor], challenger: &[Tensor]) -> Agreement {
    distance_by_name(challenger, served).map_or(Agreement::Differs, Agreement::Compared)
}
