//! A hand-written model. It predicts the months until a savings goal is reached.

use modelhost_sdk::{Column, Config, Datatype, Error, Model, Request, Signature, Tensor, TensorSpec};

struct SavingsGoal {
    yearly_interest: f64,
}

impl Model for SavingsGoal {
    fn load(config: &Config) -> Result<(Self, Signature), Error> {
        let interest = config.parameter("yearly_interest").unwrap_or("0").parse();
        let yearly_interest = interest.map_err(|_| Error::Model("yearly_interest is not a number".into()))?;
        let columns = ["goal", "balance", "monthly_saving"].map(Column::numeric).to_vec();
        let signature = Signature {
            inputs: vec![TensorSpec::new("input", Datatype::Fp32, &[]).with_columns(columns)],
            outputs: vec![TensorSpec::new("months", Datatype::Fp32, &[-1])],
        };
        Ok((Self { yearly_interest }, signature))
    }

    fn infer(&self, request: &Request) -> Result<Vec<Tensor>, Error> {
        let input = request.input("input")?;
        let monthly = self.yearly_interest / 12.0;
        let rows = input.values::<f32>()?;
        let months = rows.chunks_exact(3).map(|row| {
            let [goal, mut balance, saving] = [row[0], row[1], row[2]].map(f64::from);
            let months = (0..1200).take_while(|_| {
                let short = balance < goal;
                balance += balance * monthly + saving;
                short
            });
            months.count() as f32
        });
        let months: Vec<f32> = months.collect();
        Ok(vec![Tensor::from_values("months", &[months.len() as u64], &months)])
    }
}

modelhost_sdk::export!(SavingsGoal);
