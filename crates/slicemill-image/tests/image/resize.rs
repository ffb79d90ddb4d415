//! Resizing equals Pillow on every byte.

use slicemill_core::Size;
use slicemill_image::{RgbImage, resize_bicubic};

use crate::{images, noise, sha256};

#[test]
fn every_resize_equals_pillow() {
    let table = std::fs::read_to_string(images().join("resize.csv")).unwrap();
    let mut cases = 0;
    let mut wrong = Vec::new();
    for line in table.lines().skip(1) {
        let fields: Vec<&str> = line.split(',').collect();
        let number = |at: usize| fields[at].parse::<u32>().unwrap();
        let image = noise(u64::from(number(0)), Size::new(number(1), number(2)));
        let resized = resize_bicubic(&image, Size::new(number(3), number(4))).unwrap();
        if sha256(resized.as_bytes()) != fields[5] {
            wrong.push(line.to_owned());
        }
        cases += 1;
    }
    assert!(cases >= 200, "only {cases} cases");
    assert!(wrong.is_empty(), "{} of {cases} differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn empty_sizes_are_refused() {
    let image = RgbImage::filled(Size::new(4, 3), [1, 2, 3]);
    for to in [Size::new(0, 5), Size::new(5, 0)] {
        assert!(resize_bicubic(&image, to).is_err());
    }
    assert!(resize_bicubic(&RgbImage::filled(Size::new(0, 3), [0; 3]), Size::new(1, 1)).is_err());
}

#[test]
fn flat_colours_stay_flat() {
    for (from, to) in [((31, 17), (14, 98)), ((1, 1), (28, 14)), ((500, 3), (9, 200))] {
        let colour = [0, 128, 255];
        let image = RgbImage::filled(Size::new(from.0, from.1), colour);
        let resized = resize_bicubic(&image, Size::new(to.0, to.1)).unwrap();
        assert!(resized.as_bytes().chunks_exact(3).all(|pixel| pixel == colour));
    }
}
