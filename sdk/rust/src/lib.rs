//! Makes a Modelhost plugin of a plain struct.
//!
//! ```ignore
//! use modelhost_sdk::{Config, Datatype, Error, Model, Request, Signature, Tensor, TensorSpec};
//!
//! struct Doubler;
//!
//! impl Model for Doubler {
//!     fn load(_config: &Config) -> Result<(Self, Signature), Error> {
//!         let signature = Signature {
//!             inputs: vec![TensorSpec::new("x", Datatype::Fp32, &[-1])],
//!             outputs: vec![TensorSpec::new("y", Datatype::Fp32, &[-1])],
//!         };
//!         Ok((Self, signature))
//!     }
//!
//!     fn infer(&self, request: &Request) -> Result<Vec<Tensor>, Error> {
//!         let x = request.input("x")?;
//!         let doubled: Vec<f32> = x.values::<f32>()?.iter().map(|value| value * 2.0).collect();
//!         Ok(vec![Tensor::from_values("y", &x.shape, &doubled)])
//!     }
//! }
//!
//! modelhost_sdk::export!(Doubler);
//! ```
//!
//! Build it as a `cdylib` with `cargo build --release --target wasm32-wasip2`. `load` runs once per version. Every
//! request then starts from the memory that `load` left. What `infer` changes is gone afterwards, so it takes `&self`.

use std::borrow::Cow;

#[doc(hidden)]
#[allow(missing_docs, unsafe_code, unreachable_pub, clippy::all, clippy::pedantic, reason = "generated")]
pub mod bindings {
    wit_bindgen::generate!({
        path: "../../wit",
        world: "runtime",
        generate_all,
        pub_export_macro: true,
        export_macro_name: "export_component",
        default_bindings_module: "modelhost_sdk::bindings",
    });
}

/// Graphs that the host evaluates, with every datatype. Needs the capability `wasi:nn`.
pub use bindings::modelhost::inference::graphs;
/// The standard interface to the same graphs. Needs the capability `wasi:nn`.
pub use bindings::wasi::nn;

pub use bindings::exports::modelhost::inference::model::{LoadConfig as Config, Request};
pub use bindings::modelhost::inference::logging::{Level, log};
pub use bindings::modelhost::inference::types::{
    Column, ColumnKind, Datatype, Error, Signature, Tensor, TensorSpec,
};

/// A model that a plugin serves.
pub trait Model: Sized {
    /// Reads the version's artifacts ([`artifact`]). Returns the model and its signature.
    fn load(config: &Config) -> Result<(Self, Signature), Error>;

    /// Answers one request. Its names, datatypes and shapes agree with the signature already.
    fn infer(&self, request: &Request) -> Result<Vec<Tensor>, Error>;
}

/// Exports `$model` as the component's model.
#[macro_export]
macro_rules! export {
    ($model:ty) => {
        #[allow(unsafe_code, reason = "the component's exports are raw functions")]
        const _: () = {
            use $crate::bindings::exports::modelhost::inference::model::{
                Guest, LoadConfig, Request, Response,
            };

            std::thread_local! {
                static MODEL: std::cell::OnceCell<$model> = const { std::cell::OnceCell::new() };
            }

            struct Component;

            impl Guest for Component {
                fn load(config: LoadConfig) -> Result<$crate::Signature, $crate::Error> {
                    $crate::report_panics();
                    let (model, signature) = <$model as $crate::Model>::load(&config)?;
                    MODEL
                        .with(|slot| slot.set(model))
                        .map_err(|_| $crate::Error::Model("load was called twice".into()))?;
                    $crate::reserve_heap();
                    Ok(signature)
                }

                fn infer(request: Request) -> Result<Response, $crate::Error> {
                    MODEL.with(|slot| {
                        let model = slot.get().ok_or_else(|| $crate::Error::Model("not loaded".into()))?;
                        let outputs = $crate::Model::infer(model, &request)?;
                        Ok(Response { outputs })
                    })
                }
            }

    $crate::bindings::export_component!(Component with_types_in $crate::bindings);
        };
    };
}

/// Sends a panic's message to the host. It appears in the host's log and in the caller's error.
#[doc(hidden)]
pub fn report_panics() {
    std::panic::set_hook(Box::new(|info| log(Level::Error, &info.to_string())));
}

/// Bytes of heap that are free after `load`, so that a typical request does not grow the memory. To grow it, and to
/// undo that afterwards, costs more than the request itself.
const FREE_HEAP: usize = 2 << 20;

/// Leaves [`FREE_HEAP`] bytes free in the memory that every request starts from. They are never written, so the
/// snapshot does not store them. If the memory limit does not allow them, requests grow the memory themselves.
#[doc(hidden)]
pub fn reserve_heap() {
    let mut room: Vec<u8> = Vec::new();
    drop(room.try_reserve_exact(FREE_HEAP));
    std::hint::black_box(&room);
}

/// The content of one of this version's artifacts. Works only while `load` runs. Errors: no such artifact; the message
/// names the artifacts.
pub fn artifact(name: &str) -> Result<Vec<u8>, Error> {
    bindings::modelhost::inference::artifacts::read(name).map_err(Error::Model)
}

/// The names of this version's artifacts, in the manifest's order. Works only while `load` runs.
pub fn artifact_names() -> Vec<String> {
    bindings::modelhost::inference::artifacts::names()
}

impl Config {
    /// The name of the model file: the value of `[parameters] model`, or else the manifest's first artifact. Works only
    /// while `load` runs. Errors: the manifest has no artifact.
    pub fn model_file(&self) -> Result<String, Error> {
        let named = self.parameter("model").map(str::to_owned);
        named
            .or_else(|| artifact_names().into_iter().next())
            .ok_or_else(|| Error::Model("the manifest names no artifact, so there is no model file".into()))
    }

    /// The value of the manifest's `[parameters]` entry `name`.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

impl Request {
    /// The input of this name. Errors: it is missing. That cannot happen to an input of the signature.
    pub fn input(&self, name: &str) -> Result<&Tensor, Error> {
        let found = self.inputs.iter().find(|tensor| tensor.name == name);
        found.ok_or_else(|| Error::InvalidInput(format!("input {name:?} is missing")))
    }
}

impl TensorSpec {
    /// A tensor's type. Each request chooses the size of a dimension of -1.
    pub fn new(name: &str, datatype: Datatype, shape: &[i64]) -> Self {
        Self { name: name.into(), datatype, shape: shape.to_vec(), columns: Vec::new() }
    }

    /// Makes the tensor a table of these columns. Its shape becomes `[-1, columns]`.
    pub fn with_columns(mut self, columns: Vec<Column>) -> Self {
        self.shape = vec![-1, columns.len() as i64];
        self.columns = columns;
        self
    }
}

impl Column {
    /// A numeric column that every row must have.
    pub fn numeric(name: &str) -> Self {
        Self {
            name: name.into(),
            kind: ColumnKind::Numeric,
            description: None,
            unit: None,
            minimum: None,
            maximum: None,
            missing: false,
        }
    }
}

/// A Rust type that a tensor's elements can be read as.
pub trait Element: bytemuck::Pod {
    /// The datatype of a tensor of these elements.
    const DATATYPE: Datatype;
}

macro_rules! elements {
    ($($rust:ty => $datatype:ident),*) => {
        $(impl Element for $rust { const DATATYPE: Datatype = Datatype::$datatype; })*
    };
}

elements!(u8 => Uint8, u16 => Uint16, u32 => Uint32, u64 => Uint64, i8 => Int8, i16 => Int16, i32 => Int32,
    i64 => Int64, f32 => Fp32, f64 => Fp64);

impl Tensor {
    /// The elements in row-major order, borrowed if their alignment allows it. Errors: the tensor has another datatype.
    pub fn values<T: Element>(&self) -> Result<Cow<'_, [T]>, Error> {
        if self.datatype != T::DATATYPE {
            let (name, came) = (&self.name, self.datatype);
            return Err(Error::InvalidInput(format!("tensor {name:?}: {came:?} is not {:?}", T::DATATYPE)));
        }
        match bytemuck::try_cast_slice(&self.data) {
            Ok(values) => Ok(Cow::Borrowed(values)),
            Err(_) => Ok(Cow::Owned(bytemuck::pod_collect_to_vec(&self.data))),
        }
    }

    /// The elements of a BYTES tensor. Errors: the tensor has another datatype.
    pub fn bytes_elements(&self) -> Result<Vec<&[u8]>, Error> {
        if self.datatype != Datatype::Bytes {
            let (name, came) = (&self.name, self.datatype);
            return Err(Error::InvalidInput(format!("tensor {name:?}: {came:?} is not Bytes")));
        }
        let (mut rest, mut elements) = (self.data.as_slice(), Vec::new());
        while let Some((length, tail)) = rest.split_first_chunk::<4>() {
            let length = u32::from_le_bytes(*length) as usize;
            let (element, tail) = tail.split_at_checked(length).unwrap_or((tail, &[]));
            elements.push(element);
            rest = tail;
        }
        Ok(elements)
    }

    /// A tensor of these elements in row-major order. The host checks that they fill `shape`.
    pub fn from_values<T: Element>(name: &str, shape: &[u64], values: &[T]) -> Self {
        Self {
            name: name.into(),
            datatype: T::DATATYPE,
            shape: shape.to_vec(),
            data: bytemuck::cast_slice(values).to_vec(),
        }
    }

    /// A BYTES tensor of these elements.
    pub fn from_bytes_elements(name: &str, shape: &[u64], elements: &[&[u8]]) -> Self {
        let mut data = Vec::new();
        for element in elements {
            #[expect(clippy::cast_possible_truncation, reason = "a guest's memory is at most 4 GiB")]
            data.extend_from_slice(&(element.len() as u32).to_le_bytes());
            data.extend_from_slice(element);
        }
        Self { name: name.into(), datatype: Datatype::Bytes, shape: shape.to_vec(), data }
    }
}
