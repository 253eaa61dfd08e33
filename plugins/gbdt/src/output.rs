//! From sums to answers, as each library computes them.

/// What happens to the sums of a row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Link {
    Identity,
    /// 1 / (1 + exp(-scale * x)), each for itself.
    Logistic {
        scale: f64,
    },
    Softmax,
    Exp,
    /// log(1 + exp(x)).
    Softplus,
    /// sign(x) x^2.
    SignedSquare,
    /// 1 above 0, else 0.
    Step,
    /// The index of the largest.
    Largest,
    /// A mean, and the logarithm of a standard deviation, which becomes a variance.
    Variance,
}

/// What the model answers: the tensor's name, and how many numbers a row (`None`: one, without a dimension of its own).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Output {
    /// `probability`, `probabilities` or `prediction`.
    pub name: &'static str,
    /// Numbers a row.
    pub width: Option<usize>,
}

impl Output {
    /// A number a row.
    pub(crate) const fn one(name: &'static str) -> Self {
        Self { name, width: None }
    }

    /// `groups` numbers a row; one is written without a dimension.
    pub(crate) fn predictions(groups: usize) -> Self {
        Self { name: "prediction", width: (groups > 1).then_some(groups) }
    }

    /// P(class) of every class, or P(class 1).
    pub(crate) fn probabilities(groups: usize) -> Self {
        if groups > 1 {
            Self { name: "probabilities", width: Some(groups) }
        } else {
            Self::one("probability")
        }
    }
}

impl Link {
    /// Turns a row's sums into its answers, in f64.
    pub(crate) fn apply(self, sums: &mut [f64]) {
        match self {
            Self::Identity => {}
            Self::Logistic { scale } => each(sums, |sum| 1.0 / (1.0 + (-scale * sum).exp())),
            Self::Exp => each(sums, f64::exp),
            Self::Softplus => each(sums, |sum| sum.exp().ln_1p()),
            Self::SignedSquare => each(sums, |sum| sum * sum.abs()),
            Self::Step => each(sums, |sum| f64::from(u8::from(sum > 0.0))),
            Self::Largest => largest(sums),
            Self::Variance => each(&mut sums[1..], |sum| (2.0 * sum).exp()),
            Self::Softmax => {
                let largest = sums.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                each(sums, |sum| (sum - largest).exp());
                let total: f64 = sums.iter().sum();
                each(sums, |sum| sum / total);
            }
        }
    }

    /// The same as XGBoost does it, in f32.
    pub(crate) fn apply_single(self, sums: &mut [f64]) {
        match self {
            // It bounds the exponent, and adds an epsilon that is lost in the rounding.
            Self::Logistic { .. } => {
                each(sums, |sum| f64::from(1.0 / ((-sum as f32).min(88.7).exp() + 1.0)));
            }
            Self::Exp => each(sums, |sum| f64::from((sum as f32).exp())),
            Self::Softmax => {
                let largest = sums.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                each(sums, |sum| f64::from(((sum - largest) as f32).exp()));
                let total = sums.iter().sum::<f64>() as f32;
                each(sums, |sum| f64::from(sum as f32 / total));
            }
            other => other.apply(sums),
        }
    }
}

fn each(sums: &mut [f64], link: impl Fn(f64) -> f64) {
    sums.iter_mut().for_each(|sum| *sum = link(*sum));
}

fn largest(sums: &mut [f64]) {
    let best = (1..sums.len()).fold(0, |best, at| if sums[at] > sums[best] { at } else { best });
    if let Some(first) = sums.first_mut() {
        *first = best as f64;
    }
}
