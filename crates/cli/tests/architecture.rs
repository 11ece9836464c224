//! Who may import whom among the crates of the workspace.

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{DependencyKind, MetadataCommand};

/// Each crate and what of ours it may import. A crate that is not here may not exist.
const RULES: &[(&str, &[&str])] = &[
    ("kernels", &[]),
    ("ops", &["kernels"]),
    ("weights", &["kernels"]),
    ("diffusion", &[]),
    ("models", &["ops", "weights", "diffusion"]),
    ("train", &["models", "diffusion", "weights", "ops"]),
    ("engine", &["models", "diffusion", "weights", "ops"]),
    ("server", &["engine"]),
    ("aquatint", &["engine", "server", "train"]),
    ("testkit", &[]),
];

/// In the tests of any crate.
const TESTS_ONLY: &str = "testkit";

/// `aquatint-kernels` is `kernels`; the binary is called `aquatint`.
fn short(package: &str) -> &str {
    package.strip_prefix("aquatint-").unwrap_or(package)
}

/// The edges from a crate to a crate of ours that the rules do not allow.
fn violations(edges: &BTreeMap<String, Vec<(String, DependencyKind)>>) -> Vec<String> {
    let mut found = Vec::new();
    for (from, targets) in edges {
        let Some((_, allowed)) = RULES.iter().find(|(name, _)| name == from) else {
            found.push(format!(
                "the crate {from} has no row in RULES: say what it may import"
            ));
            continue;
        };
        for (to, kind) in targets {
            let fine = match (to.as_str(), kind) {
                (TESTS_ONLY, DependencyKind::Development) => true,
                (to, DependencyKind::Development) => allowed.contains(&to) || from == to,
                (to, _) => to != TESTS_ONLY && allowed.contains(&to),
            };
            if !fine {
                let may = match allowed {
                    [] => "nothing of ours".to_owned(),
                    names => format!("only {}", names.join(", ")),
                };
                let how = match kind {
                    DependencyKind::Development => "dev-dependency",
                    DependencyKind::Build => "build-dependency",
                    _ => "dependency",
                };
                found.push(format!(
                    "{from} -> {to} ({how}) is not allowed: {from} may import {may}"
                ));
            }
        }
    }
    found
}

#[test]
fn crates_import_only_what_they_may() {
    let metadata = MetadataCommand::new()
        .manifest_path(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .no_deps()
        .other_options(vec!["--offline".into()])
        .exec()
        .expect("cargo metadata runs");
    let ours: BTreeSet<String> = metadata
        .packages
        .iter()
        .map(|p| p.name.to_string())
        .collect();
    let edges: BTreeMap<_, _> = metadata
        .packages
        .iter()
        .map(|package| {
            let targets = package
                .dependencies
                .iter()
                .filter(|d| ours.contains(&d.name))
                .map(|d| (short(&d.name).to_owned(), d.kind))
                .collect();
            (short(&package.name).to_owned(), targets)
        })
        .collect();
    for needed in [
        "kernels",
        "ops",
        "weights",
        "diffusion",
        "models",
        "engine",
        "aquatint",
    ] {
        assert!(
            edges.contains_key(needed),
            "no crate {needed} in the workspace"
        );
    }
    let found = violations(&edges);
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn a_wrong_edge_is_told() {
    let edge = |from: &str, to: &str, kind| {
        violations(&BTreeMap::from([(
            from.to_owned(),
            vec![(to.to_owned(), kind)],
        )]))
    };
    assert!(edge("ops", "kernels", DependencyKind::Normal).is_empty());
    assert!(edge("ops", "testkit", DependencyKind::Development).is_empty());
    assert_eq!(
        edge("diffusion", "ops", DependencyKind::Normal),
        ["diffusion -> ops (dependency) is not allowed: diffusion may import nothing of ours"]
    );
    for (from, to, kind) in [
        ("kernels", "weights", DependencyKind::Normal),
        ("aquatint", "models", DependencyKind::Normal),
        ("engine", "testkit", DependencyKind::Normal),
        ("models", "engine", DependencyKind::Development),
        ("another", "ops", DependencyKind::Normal),
    ] {
        assert_eq!(edge(from, to, kind).len(), 1, "{from} -> {to}");
    }
}
