//! `aquatint bench`: what this machine does with the kernels and with a model.

use std::fmt::Write;

use aquatint_engine::bench::{self, Op, OpTime, Part, SHAPES, Shape};
use aquatint_engine::models::{Checkpoint, OpenOptions};
use aquatint_engine::{Device, EngineError, Request};
use serde_json::json;

use crate::args::{BenchCommand, BenchModelArgs, BenchOpsArgs, OpArg, PartArg};
use crate::failure::Failure;
use crate::locate::locate;
use crate::{generate, setup};

/// Runs the command.
pub fn run(command: &BenchCommand) -> Result<(), Failure> {
    match command {
        BenchCommand::Ops(args) => ops(args),
        BenchCommand::Model(args) => model(args),
    }
}

fn ops(args: &BenchOpsArgs) -> Result<(), Failure> {
    let shapes = shapes(args)?;
    generate::set_threads(args.threads)?;
    let peak = bench::peak_gflops();
    let threads = rayon::current_num_threads();
    if args.json {
        let mut all = Vec::new();
        for shape in shapes {
            all.extend(bench::time(shape)?);
        }
        return crate::print_json(&json!({ "peak_gflops": peak, "threads": threads, "ops": all }));
    }
    crate::print(&format!(
        "{threads} threads, peak {peak:.1} GFLOP/s (multiply-adds and nothing else)\n"
    ))?;
    for shape in shapes {
        for time in bench::time(shape)? {
            crate::print(&line(&time, peak))?;
        }
    }
    Ok(())
}

/// The shapes that are asked for.
fn shapes(args: &BenchOpsArgs) -> Result<Vec<Shape>, Failure> {
    let only = args.only.map(|op| match op {
        OpArg::Conv2d => Op::Conv2d,
        OpArg::Gemm => Op::Gemm,
        OpArg::Attention => Op::Attention,
    });
    let texts = match &args.shape {
        Some(text) => vec![text.as_str()],
        None => SHAPES.to_vec(),
    };
    let mut shapes = Vec::new();
    for text in texts {
        let shape = Shape::parse(text)?;
        match only {
            Some(op) if shape.op() == op => shapes.push(shape),
            None => shapes.push(shape),
            Some(op) if args.shape.is_some() => {
                let (found, expected) = (shape.op().name(), op.name());
                return Err(Failure::usage(
                    format!("{shape} is a shape of {found}, but --only is {expected}"),
                    "leave --only out, or give a shape of that operation",
                ));
            }
            Some(_) => {}
        }
    }
    Ok(shapes)
}

fn line(time: &OpTime, peak: f64) -> String {
    let OpTime {
        op,
        shape,
        rhs,
        ms,
        gflops,
    } = time;
    let percent = 100.0 * gflops / peak;
    format!("{op:<9} {shape:<26} {rhs:<4} {ms:>10.3} ms {gflops:>8.1} GFLOP/s {percent:>6.1} %\n")
}

fn model(args: &BenchModelArgs) -> Result<(), Failure> {
    generate::set_threads(args.threads)?;
    let location = locate(args.path.as_deref())?;
    let open = OpenOptions {
        storage: setup::storage(args.dtype),
        ..OpenOptions::default()
    };
    let model = Checkpoint::open(&location, &open).map_err(EngineError::from)?;
    let side = model.default_size();
    let request = Request {
        prompt: "a lighthouse in a storm".into(),
        negative: Some(String::new()),
        width: args.width.unwrap_or(side),
        height: args.height.unwrap_or(side),
        steps: args.steps,
        guidance: model.spec.defaults.guidance,
        sampler: "euler".into(),
        ..Request::default()
    };
    // Refuses a picture that no memory of this machine would hold.
    aquatint_engine::estimate(&model, &request)?;
    let only = args.only.map(|part| match part {
        PartArg::Text => Part::Text,
        PartArg::Step => Part::Step,
        PartArg::Decode => Part::Decode,
    });
    let times = bench::time_model(&model, &request, &Device::flex(), only)?;
    if args.json {
        let times = serde_json::to_value(times)
            .map_err(|e| Failure::new(format!("cannot be written as JSON: {e}"), ""))?;
        return crate::print_json(&times);
    }
    let guided = if request.guidance > 1.0 {
        ", with guidance"
    } else {
        ""
    };
    let mut text = format!(
        "{}, {}x{}, {} threads\n",
        model.name,
        request.width,
        request.height,
        rayon::current_num_threads()
    );
    let stages = [
        ("loading", Some(times.load_s), ""),
        ("reading the prompt", times.text_encode_s, ""),
        ("one step", times.denoise_step_s, guided),
        ("decoding", times.vae_decode_s, ""),
    ];
    for (name, seconds, note) in stages {
        if let Some(seconds) = seconds {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "  {name:<20} {seconds:>8.3} s{note}");
        }
    }
    let _ = writeln!(
        text,
        "  {:<20} {:>8.2} GB",
        "peak memory",
        times.peak_bytes as f64 / 1e9
    );
    crate::print(&text)
}
