//! Folders of pictures, on real files.

use std::path::Path;

use aquatint_train::TrainError;
use aquatint_train::data::{
    Batch, Buckets, CaptionOptions, Crop, Folder, Loader, LoaderOptions, PictureOptions,
    SelectionOptions, Size, picture,
};
use image::{Rgb, RgbImage, Rgba, RgbaImage};

fn write(folder: &Path, name: &str, content: &[u8]) {
    let path = folder.join(name);
    std::fs::create_dir_all(path.parent().expect("a file lies in a folder")).expect("folder");
    std::fs::write(path, content).expect("file");
}

fn flat(folder: &Path, name: &str, width: u32, height: u32, color: [u8; 3]) {
    let path = folder.join(name);
    std::fs::create_dir_all(path.parent().expect("a file lies in a folder")).expect("folder");
    RgbImage::from_pixel(width, height, Rgb(color))
        .save(path)
        .expect("picture");
}

fn square(side: usize) -> Size {
    Size {
        width: side,
        height: side,
    }
}

fn options(batch: usize, workers: usize) -> LoaderOptions {
    LoaderOptions {
        selection: SelectionOptions {
            seed: 3,
            batch,
            picture: PictureOptions {
                crop: Crop::Random,
                flip: 0.5,
            },
            captions: CaptionOptions::default(),
        },
        workers,
    }
}

fn read(folder: &Folder, options: LoaderOptions, from: u64, end: u64) -> Vec<Batch> {
    let buckets = Buckets::one(square(16), 8).expect("sizes");
    Loader::new(folder, &buckets, options, from, end)
        .expect("loader")
        .collect()
}

#[test]
fn captions_and_classes_follow_the_imagefolder_convention() {
    let dir = tempfile::tempdir().expect("tempdir");
    let root = dir.path();
    flat(root, "cats/a.png", 8, 8, [1, 2, 3]);
    flat(root, "dogs/deep/b.jpg", 8, 8, [1, 2, 3]);
    flat(root, "dogs/c.webp", 8, 8, [1, 2, 3]);
    flat(root, "top.bmp", 8, 8, [1, 2, 3]);
    write(root, "cats/a.txt", "a cat\n\n  a small cat \n".as_bytes());
    write(
        root,
        "metadata.jsonl",
        b"{\"file_name\": \"dogs/c.webp\", \"text\": [\"a dog\", \"hound\"], \"label\": \"hounds\"}\n\
          {\"file_name\": \"top.bmp\", \"text\": \"top\", \"label\": 3}\n",
    );
    write(root, "readme.md", b"not a picture");
    write(root, ".hidden/x.png", b"not looked at");
    let folder = Folder::scan(root).expect("scan");
    let seen: Vec<_> = folder
        .examples
        .iter()
        .map(|e| {
            let name = e
                .path
                .strip_prefix(root)
                .expect("inside")
                .display()
                .to_string();
            let class = e.class.map(|c| folder.classes[c].as_str());
            (name, e.captions.join("|"), class)
        })
        .collect();
    let row =
        |name: &str, captions: &str, class| (name.to_owned(), captions.to_owned(), Some(class));
    assert_eq!(
        seen,
        [
            row("cats/a.png", "a cat|a small cat", "cats"),
            row("dogs/c.webp", "a dog|hound", "hounds"),
            row("dogs/deep/b.jpg", "", "dogs"),
            row("top.bmp", "top", "3"),
        ]
    );
    let error = folder.require_captions().unwrap_err().to_string();
    assert!(
        error.contains("1 of 4 pictures") && error.contains("b.jpg"),
        "{error}"
    );
}

#[test]
fn folders_that_cannot_serve_are_refused_in_words() {
    let dir = tempfile::tempdir().expect("tempdir");
    let said = |folder: &Path| Folder::scan(folder).expect_err("refused").to_string();
    assert!(said(&dir.path().join("none")).contains("none"));
    assert!(said(dir.path()).contains("no pictures were found (files ending in png, jpg"));
    flat(dir.path(), "a.png", 8, 8, [0; 3]);
    write(dir.path(), "b.txt", b"nobody");
    assert!(said(dir.path()).contains("1 captions have no picture beside them, such as"));
    std::fs::remove_file(dir.path().join("b.txt")).expect("remove");
    write(
        dir.path(),
        "metadata.jsonl",
        b"{\"file_name\": \"z.png\", \"text\": \"x\"}",
    );
    assert!(said(dir.path()).contains("z.png"));
    write(dir.path(), "metadata.jsonl", b"\n{\"file\": 1}");
    let error = said(dir.path());
    assert!(
        error.contains("line 2") && error.contains("file_name"),
        "{error}"
    );
}

#[test]
fn pictures_are_composed_scaled_cropped_and_mirrored() {
    let dir = tempfile::tempdir().expect("tempdir");
    // Left half red, right half transparent: on white.
    let path = dir.path().join("half.png");
    RgbaImage::from_fn(64, 32, |x, _| {
        if x < 32 {
            Rgba([255, 0, 0, 255])
        } else {
            Rgba([0, 0, 0, 0])
        }
    })
    .save(&path)
    .expect("picture");
    assert_eq!(
        picture::dimensions(&path),
        Ok(Size {
            width: 64,
            height: 32
        })
    );
    let load = |across, mirror| {
        let place = picture::Placement {
            size: square(16),
            across,
            down: 0.5,
            mirror,
        };
        picture::load(&path, place).expect("picture")
    };
    let pixel = |values: &[f32], x: usize, y: usize| {
        let at = (y * 16 + x) * 3;
        [values[at], values[at + 1], values[at + 2]]
    };
    let (red, white) = ([1.0, -1.0, -1.0], [1.0, 1.0, 1.0]);
    assert_eq!(pixel(&load(0.0, false), 8, 8), red);
    assert_eq!(pixel(&load(1.0, false), 8, 8), white);
    let middle = load(0.5, false);
    assert_eq!((pixel(&middle, 0, 5), pixel(&middle, 15, 5)), (red, white));
    let mirrored = load(0.5, true);
    assert_eq!(
        (pixel(&mirrored, 0, 5), pixel(&mirrored, 15, 5)),
        (white, red)
    );
}

#[test]
fn batches_are_the_same_whoever_decodes_them_and_wherever_reading_begins() {
    let dir = tempfile::tempdir().expect("tempdir");
    for i in 0..11_u8 {
        RgbImage::from_fn(40, 24, |x, y| Rgb([i * 20, x as u8 * 6, y as u8 * 9]))
            .save(dir.path().join(format!("{i:02}.png")))
            .expect("picture");
        write(
            dir.path(),
            &format!("{i:02}.txt"),
            format!("number {i}, tag").as_bytes(),
        );
    }
    let folder = Folder::scan(dir.path()).expect("scan");
    let whole = read(&folder, options(4, 1), 0, 9);
    assert_eq!(
        whole.iter().map(|b| b.number).collect::<Vec<_>>(),
        (0..9).collect::<Vec<_>>()
    );
    // Three batches an epoch: 4, 4 and 3 examples in some order; every picture once.
    for epoch in whole.chunks(3) {
        let mut seen: Vec<usize> = epoch
            .iter()
            .flat_map(|b| &b.samples)
            .map(|s| s.index)
            .collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..11).collect::<Vec<_>>());
    }
    assert_eq!(whole, read(&folder, options(4, 3), 0, 9));
    assert_eq!(whole[5..], read(&folder, options(4, 2), 5, 9));
    // Chance did something: captions dropped and kept, mirrored and not.
    let samples: Vec<_> = whole.iter().flat_map(|b| &b.samples).collect();
    assert!(samples.iter().any(|s| s.mirrored) && samples.iter().any(|s| !s.mirrored));
    assert!(samples.iter().any(|s| s.caption.starts_with("number")));
}

#[test]
fn corrupt_pictures_are_named_and_skipped() {
    let dir = tempfile::tempdir().expect("tempdir");
    for i in 0..4 {
        flat(dir.path(), &format!("good{i}.png"), 20, 20, [9; 3]);
    }
    write(dir.path(), "text.png", b"this is no picture");
    write(dir.path(), "empty.jpg", b"");
    // A sound header, then nothing: found when it is decoded.
    let whole = std::fs::read(dir.path().join("good0.png")).expect("file");
    write(dir.path(), "torn.png", &whole[..whole.len() / 2]);
    let folder = Folder::scan(dir.path()).expect("scan");
    let buckets = Buckets::one(square(16), 8).expect("sizes");
    let loader = Loader::new(&folder, &buckets, options(5, 1), 0, 1).expect("loader");
    let mut at_start: Vec<String> = loader
        .skipped_at_start()
        .iter()
        .map(|s| {
            s.path
                .file_name()
                .expect("name")
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    at_start.sort();
    let batches: Vec<Batch> = loader.collect();
    let later = &batches[0].skipped;
    assert_eq!(at_start, ["empty.jpg", "text.png"]);
    assert_eq!(batches[0].samples.len(), 4);
    assert!(
        later.len() == 1 && later[0].path.ends_with("torn.png"),
        "{later:?}"
    );

    let dir = tempfile::tempdir().expect("tempdir");
    write(dir.path(), "text.png", b"this is no picture");
    let folder = Folder::scan(dir.path()).expect("scan");
    let error = Loader::new(&folder, &buckets, options(1, 1), 0, 1).expect_err("none");
    assert!(
        matches!(error, TrainError::AllCorrupt { pictures: 1, .. }),
        "{error}"
    );
}

#[test]
fn a_loader_that_is_dropped_early_ends_its_threads() {
    let dir = tempfile::tempdir().expect("tempdir");
    flat(dir.path(), "a.png", 20, 20, [9; 3]);
    let folder = Folder::scan(dir.path()).expect("scan");
    let buckets = Buckets::one(square(16), 8).expect("sizes");
    let mut loader = Loader::new(&folder, &buckets, options(1, 3), 0, u64::MAX).expect("loader");
    assert!(loader.next().is_some());
    // Joins the threads: a test that hangs here has found one that does not end.
    drop(loader);
}

#[test]
fn options_out_of_range_are_refused() {
    let dir = tempfile::tempdir().expect("tempdir");
    flat(dir.path(), "a.png", 20, 20, [9; 3]);
    let folder = Folder::scan(dir.path()).expect("scan");
    let buckets = Buckets::one(square(16), 8).expect("sizes");
    let refused = |change: &dyn Fn(&mut LoaderOptions)| {
        let mut options = options(1, 1);
        change(&mut options);
        Loader::new(&folder, &buckets, options, 0, 1)
            .expect_err("refused")
            .to_string()
    };
    assert!(refused(&|o| o.selection.batch = 0).contains("batch_size is 0"));
    assert!(refused(&|o| o.workers = 0).contains("data.workers"));
    assert!(refused(&|o| o.selection.picture.flip = 2.0).contains("data.flip"));
    assert!(
        refused(&|o| o.selection.captions.dropout = f64::NAN).contains("data.captions.dropout")
    );
}
