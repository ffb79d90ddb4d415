//! Golden data that is too large for the repository: read from the directory in `SLICEMILL_GOLDEN`.

use std::path::PathBuf;

use safetensors::SafeTensors;
use slicemill_core::{Alpha, ImageOptions, Normalisation, OrientationRule, Size};
use slicemill_image::{NormalisationTable, RgbImage, decode, read_header, resize_bicubic};

use crate::sha256;

fn golden() -> Option<PathBuf> {
    let directory = std::env::var_os("SLICEMILL_GOLDEN").map(PathBuf::from);
    if directory.is_none() {
        eprintln!("SLICEMILL_GOLDEN is not set: nothing is compared");
    }
    directory
}

#[test]
fn end_to_end_images_decode_to_their_hashes() {
    let Some(directory) = golden().map(|directory| directory.join("e2e/images")) else { return };
    let text = std::fs::read_to_string(directory.join("images.json")).unwrap();
    let document: serde_json::Value = serde_json::from_str(&text).unwrap();
    for entry in document["images"].as_array().unwrap() {
        let name = entry["file"].as_str().unwrap();
        let bytes = std::fs::read(directory.join(name)).unwrap();
        for (orientation, key) in
            [(OrientationRule::Ignore, "rgb_sha256"), (OrientationRule::Apply, "exif_transposed_rgb_sha256")]
        {
            let options = ImageOptions { orientation, alpha: Alpha::Drop, ..ImageOptions::default() };
            let header = read_header(&bytes, name, &options).unwrap();
            let image = decode(&bytes, &header, &options).unwrap().image;
            assert_eq!(sha256(image.as_bytes()), entry[key].as_str().unwrap(), "{name}, {key}");
        }
    }
}

#[test]
fn numeric_goldens_of_resizing_and_normalising() {
    let Some(directory) = golden() else { return };
    let bytes = std::fs::read(directory.join("numeric/numeric_golden.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let image = |name: &str| {
        let tensor = tensors.tensor(name).unwrap();
        let (height, width) = (tensor.shape()[0] as u32, tensor.shape()[1] as u32);
        RgbImage::from_raw(Size::new(width, height), tensor.data().to_vec()).unwrap()
    };
    let source = image("pil.in");
    let mut compared = 0;
    for name in tensors.names().into_iter().filter(|name| name.starts_with("pil.bicubic.")) {
        let expected = image(name);
        assert_eq!(resize_bicubic(&source, expected.size()).unwrap(), expected, "{name}");
        compared += 1;
    }
    assert!(compared >= 8, "{compared}");

    let table = NormalisationTable::new(&Normalisation::CLIP);
    let expected = tensors.tensor("clipnorm.lut_f32").unwrap();
    let (values, _) = expected.data().as_chunks::<4>();
    for (index, &value) in values.iter().enumerate() {
        let (sample, channel) = (index / 3, index % 3);
        let ours = table.channel(channel).unwrap()[sample];
        assert_eq!(ours.to_bits(), f32::from_le_bytes(value).to_bits(), "sample {sample}, channel {channel}");
    }
}
