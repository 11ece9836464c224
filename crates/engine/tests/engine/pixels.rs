//! Models without text against diffusers' pipelines, every step.

use std::ops::ControlFlow;

use aquatint_engine::diffusion::Prediction;
use aquatint_engine::models::{Location, OpenOptions};
use aquatint_engine::picture::Picture;
use aquatint_engine::{Device, EngineError, Event, Model, Request, RunOptions, Stage};
use aquatint_testkit::{Tensors, assert_close, golden};

use crate::support::LATENTS;

fn open(name: &str) -> Model {
    let location = Location::Path(golden(&format!("pixels/{name}")));
    Model::open(&location, &OpenOptions::default()).unwrap()
}

fn run(model: &Model, request: &Request) -> Result<(Vec<Vec<f32>>, Vec<Picture>), EngineError> {
    let mut steps = Vec::new();
    let options = RunOptions::default();
    let made = model.generate(request, &options, &Device::flex(), &mut |event| {
        if let Event::Step {
            stage: Stage::Denoise,
            latents: Some(now),
            ..
        } = event
        {
            steps.push(now.values.to_vec());
        }
        ControlFlow::Continue(())
    })?;
    Ok((steps, made.pictures.into_iter().map(|(_, p)| p).collect()))
}

#[track_caller]
fn equals_diffusers(case: &str, model: &Model, request: &Request) {
    let references = Tensors::read(golden("pixels/references.safetensors")).unwrap();
    let (steps, pictures) = run(model, request).unwrap();
    assert_eq!(steps.len(), request.steps as usize);
    for (i, x) in steps.iter().enumerate() {
        let stage = format!("{case}/step{i:02}");
        assert_close(&stage, x, references.get(&stage), LATENTS);
    }
    let want = references.get(&format!("{case}/image"));
    let [height, width, channels] = want.shape() else {
        panic!("{case}: {:?}", want.shape());
    };
    let picture = &pictures[0];
    assert_eq!(
        (picture.height as usize, picture.width as usize),
        (*height, *width)
    );
    assert_eq!(picture.grey, *channels == 1);
    let every = if picture.grey { 3 } else { 1 };
    for (got, want) in picture.rgb.iter().step_by(every).zip(want.u8()) {
        assert!(got.abs_diff(*want) <= 1, "{case}: {got} and {want}");
    }
}

#[test]
fn grey_pixels_equal_ddpm_pipeline() {
    let model = open("grey");
    let defaults = model.defaults();
    assert_eq!((defaults.sampler.as_str(), defaults.steps), ("ddpm", 1000));
    assert_eq!((defaults.width, defaults.height), (8, 8));
    assert_eq!(model.prediction(), Prediction::V);
    let request = Request {
        steps: 10,
        seed: 3,
        ..defaults
    };
    equals_diffusers("grey/10", &model, &request);
}

#[test]
fn coloured_pixels_equal_ddim_and_ddpm_pipelines() {
    let model = open("colour");
    let defaults = model.defaults();
    assert_eq!((defaults.sampler.as_str(), defaults.steps), ("ddim", 50));
    assert_eq!((defaults.width, defaults.height), (12, 8));
    let request = Request {
        steps: 6,
        seed: 4,
        ..defaults.clone()
    };
    equals_diffusers("colour/6", &model, &request);
    let request = Request {
        steps: 7,
        seed: 6,
        sampler: "ddpm".into(),
        ..defaults
    };
    equals_diffusers("colour/ddpm", &model, &request);
}

#[test]
fn classes_with_and_without_guidance_equal_diffusers_loop() {
    let model = open("classes");
    let defaults = model.defaults();
    assert_eq!(
        (defaults.sampler.as_str(), defaults.steps, defaults.guidance),
        ("ddim", 6, 2.0)
    );
    let request = Request {
        class: Some(1),
        seed: 5,
        ..defaults
    };
    equals_diffusers("classes/ddim", &model, &request);
    let request = Request {
        class: Some(2),
        guidance: 1.0,
        sampler: "ddpm".into(),
        ..request
    };
    equals_diffusers("classes/ddpm", &model, &request);
}

#[test]
fn a_picture_does_not_depend_on_its_batch() {
    let model = open("classes");
    let request = Request {
        class: Some(0),
        seed: 8,
        batch: 3,
        ..model.defaults()
    };
    let (_, together) = run(&model, &request).unwrap();
    for (i, picture) in together.iter().enumerate() {
        let alone = Request {
            seed: 8 + i as u64,
            batch: 1,
            ..request.clone()
        };
        assert_eq!(run(&model, &alone).unwrap().1[0], *picture);
    }
}

#[test]
fn requests_that_do_not_fit_are_told() {
    let (grey, classes) = (open("grey"), open("classes"));
    let (plain, told) = (grey.defaults(), classes.defaults());
    let class = Some(0);
    for (model, request, word) in [
        (
            &grey,
            Request {
                prompt: "a cat".into(),
                ..plain.clone()
            },
            "no text",
        ),
        (
            &grey,
            Request {
                width: 9,
                ..plain.clone()
            },
            "multiple of 2",
        ),
        (
            &grey,
            Request {
                height: 0,
                ..plain.clone()
            },
            "height is 0",
        ),
        (
            &grey,
            Request {
                width: 5000,
                ..plain.clone()
            },
            "up to 4096",
        ),
        (
            &grey,
            Request {
                class,
                ..plain.clone()
            },
            "told none",
        ),
        (
            &grey,
            Request {
                steps: 0,
                ..plain.clone()
            },
            "steps is 0",
        ),
        (
            &grey,
            Request {
                eta: Some(0.5),
                ..plain.clone()
            },
            "has none",
        ),
        (&classes, told.clone(), "circle, cross, 7"),
        (
            &classes,
            Request {
                class: Some(3),
                ..told.clone()
            },
            "class is 3",
        ),
        (
            &classes,
            Request {
                class,
                schedule: Some("ays".into()),
                ..told
            },
            "Stable Diffusion",
        ),
    ] {
        let error = model.estimate(&request).unwrap_err();
        assert!(
            error.is_usage() && error.to_string().contains(word),
            "{error}"
        );
        let again = run(model, &request).unwrap_err();
        assert_eq!(again.to_string(), error.to_string());
    }
    let fits = Request {
        width: 16,
        height: 2,
        steps: 2,
        ..plain
    };
    assert!(grey.estimate(&fits).unwrap().network_calls == 2);
    assert_eq!(run(&grey, &fits).unwrap().1[0].width, 16);
}
