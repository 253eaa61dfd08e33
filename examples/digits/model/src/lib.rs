//! Recognises handwritten digits. Pictures come from strangers, so they are decoded here, in the sandbox. The network
//! is the graph `model.onnx`, which the host evaluates.

use std::io::Cursor;

use image::imageops::{FilterType, resize};
use image::{GrayImage, ImageReader, Limits};
use modelhost_sdk::{Config, Datatype, Error, Model, Request, Signature, Tensor, TensorSpec, graphs};

/// Pixels along each side of the network's input.
const SIDE: u32 = 8;

/// The network's pixel values range from 0 (paper) to this (ink).
const INK: f32 = 16.0;

/// The largest width and height of a picture, in pixels.
const MAX_SIDE: u32 = 4096;

/// The model. It has no state besides the graph.
pub struct Digits;

impl Model for Digits {
    fn load(_config: &Config) -> Result<(Self, Signature), Error> {
        let signature = Signature {
            inputs: vec![TensorSpec::new("picture", Datatype::Bytes, &[-1])],
            outputs: vec![
                TensorSpec::new("digit", Datatype::Int64, &[-1]),
                TensorSpec::new("probabilities", Datatype::Fp32, &[-1, 10]),
            ],
        };
        Ok((Self, signature))
    }

    fn infer(&self, request: &Request) -> Result<Vec<Tensor>, Error> {
        let pictures = request.input("picture")?.bytes_elements()?;
        let mut points = Vec::new();
        for (at, picture) in pictures.iter().enumerate() {
            let wrong = |error| Error::InvalidInput(format!("input \"picture\", element {at}: {error}"));
            points.extend(ink(&decode(picture).map_err(wrong)?));
        }
        let shape = [pictures.len() as u64, SIDE.into(), SIDE.into()];
        let answers = graphs::compute("model", &[Tensor::from_values("image", &shape, &points)], &[])?;
        let probabilities = answers.first().ok_or_else(|| Error::Model("the graph has no output".into()))?;
        let digits: Vec<i64> = probabilities.values::<f32>()?.chunks(10).map(likeliest).collect();
        let digit = Tensor::from_values("digit", &[digits.len() as u64], &digits);
        Ok(vec![digit, Tensor { name: "probabilities".into(), ..probabilities.clone() }])
    }
}

fn decode(picture: &[u8]) -> image::ImageResult<GrayImage> {
    let mut reader = ImageReader::new(Cursor::new(picture)).with_guessed_format()?;
    let mut limits = Limits::default();
    (limits.max_image_width, limits.max_image_height) = (Some(MAX_SIDE), Some(MAX_SIDE));
    reader.limits(limits);
    Ok(reader.decode()?.into_luma8())
}

/// Converts a picture to the network's input: 8 x 8 pixels. The corners show the brightness of the paper.
fn ink(picture: &GrayImage) -> impl Iterator<Item = f32> + use<> {
    let small = resize(picture, SIDE, SIDE, FilterType::Triangle);
    let corners = [(0, 0), (SIDE - 1, 0), (0, SIDE - 1), (SIDE - 1, SIDE - 1)];
    let brightness: u32 = corners.iter().map(|(x, y)| u32::from(small.get_pixel(*x, *y).0[0])).sum();
    let dark_paper = brightness < 4 * 128;
    small.into_raw().into_iter().map(move |point| {
        let ink = if dark_paper { point } else { 255 - point };
        f32::from(ink) / 255.0 * INK
    })
}

fn likeliest(probabilities: &[f32]) -> i64 {
    let best = (0_i64..).zip(probabilities).max_by(|(_, one), (_, other)| one.total_cmp(other));
    best.map_or(0, |(digit, _)| digit)
}

#[cfg(target_family = "wasm")]
modelhost_sdk::export!(Digits);
