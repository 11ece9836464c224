//! `aquatint samplers`: the tables of samplers and schedules.

use std::fmt::Write;

use aquatint_engine::diffusion::SAMPLERS;
use aquatint_engine::diffusion::sampler::OnFlows;
use aquatint_engine::diffusion::schedule::SCHEDULES;
use serde_json::json;

use crate::args::SamplersArgs;
use crate::failure::Failure;

/// Runs the command.
pub fn run(args: &SamplersArgs) -> Result<(), Failure> {
    if args.json {
        return crate::print_json(&table());
    }
    let mut text = String::from("Samplers (--sampler)\n");
    for s in SAMPLERS {
        let kind = if s.stochastic {
            "stochastic"
        } else {
            "deterministic"
        };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  {:<14} {:<13} {}", s.name, kind, s.summary);
        if let OnFlows::Unfit(why) = s.flows {
            let _ = writeln!(text, "  {:<14} {:<13} not for flow models: {why}", "", "");
        }
        if !s.aliases.is_empty() {
            let _ = writeln!(
                text,
                "  {:<14} {:<13} also: {}",
                "",
                "",
                s.aliases.join(", ")
            );
        }
    }
    text.push_str("\nSchedules (--schedule)\n");
    for s in SCHEDULES {
        let _ = writeln!(text, "  {:<28} {}", s.name, s.summary);
        if !s.aliases.is_empty() {
            let _ = writeln!(text, "  {:<28} also: {}", "", s.aliases.join(", "));
        }
    }
    crate::print(&text)
}

fn table() -> serde_json::Value {
    let samplers: Vec<_> = SAMPLERS
        .iter()
        .map(|s| {
            json!({
                "name": s.name, "aliases": s.aliases, "summary": s.summary, "order": s.order,
                "stochastic": s.stochastic, "reference": s.reference,
                "flows": match s.flows {
                    OnFlows::Unfit(_) => None,
                    form => Some(form.summary()),
                },
            })
        })
        .collect();
    let schedules: Vec<_> = SCHEDULES
        .iter()
        .map(|s| {
            json!({
                "name": s.name, "aliases": s.aliases, "summary": s.summary,
                "reference": s.reference,
            })
        })
        .collect();
    json!({"samplers": samplers, "schedules": schedules})
}
