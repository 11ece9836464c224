//! `aquatint models`, and finding a model by name.

mod common;

use aquatint_testkit::{folder, golden, single_file};
use common::{Place, arg, quick};

#[test]
fn without_a_folder_there_is_the_model_inside() {
    let place = Place::new();
    let listing = place.ok(["models"]);
    assert!(
        listing.starts_with("emoji  Stable Diffusion 1.x, "),
        "{listing}"
    );
    assert!(
        listing.contains(".local/share/aquatint/models"),
        "{listing}"
    );
    let json = place.json(["models"]);
    assert_eq!(json["models"].as_array().expect("a list").len(), 1);
    assert_eq!(json["models"][0]["family"], "sd1");
}

#[test]
fn a_folder_s_models_are_listed_with_what_they_are() {
    let place = Place::new();
    let models = place.join("my models");
    std::fs::create_dir_all(models.join("deep")).expect("a folder");
    folder("sd2", &models).expect("a golden");
    folder("sdxl", &models.join("deep")).expect("a golden");
    single_file("sd1", &models).expect("a golden");
    std::fs::write(models.join("broken.safetensors"), b"").expect("a file");
    std::fs::write(models.join("notes.txt"), b"mine").expect("a file");

    let listing = place.ok(["models", arg(&models)]);
    let line = |name: &str| {
        let found = listing.lines().find(|l| l.starts_with(name));
        found.unwrap_or_else(|| panic!("no {name} in\n{listing}"))
    };
    assert_eq!(listing.lines().count(), 4, "{listing}");
    assert!(
        line("sd2").contains("Stable Diffusion 2.x, v_prediction, F16, "),
        "{listing}"
    );
    assert!(
        line("deep/sdxl").contains("Stable Diffusion XL, epsilon, F16, "),
        "{listing}"
    );
    assert!(
        line("sd1.safetensors").contains("Stable Diffusion 1.x"),
        "{listing}"
    );
    assert!(line("broken").contains("not usable"), "{listing}");

    let json = place.json(["models", arg(&models)]);
    let rows = json["models"].as_array().expect("a list");
    assert_eq!(rows.len(), 4);
    let sd2 = rows.iter().find(|r| r["name"] == "sd2").expect("a row");
    for key in ["parameters", "bytes", "size", "steps"] {
        assert!(sd2[key].as_u64().expect(key) > 0);
    }
    assert_eq!(sd2["prediction"], "v_prediction");
}

/// GGUF files too, and parts of models under what they are.
#[test]
fn parts_of_models_are_told_as_such() {
    let place = Place::new();
    let models = place.join("m");
    std::fs::create_dir(&models).expect("a folder");
    let whole = single_file("sd1", place.path()).expect("a golden");
    for (source, name) in [
        (whole, "sd1.gguf"),
        (golden("flow/sd35_medium/transformer"), "sd35.gguf"),
        (golden("flow/flux_dev/transformer"), "flux.gguf"),
        (golden("flow/parts/text_encoder_3"), "t5.gguf"),
        (golden("flow/parts/vae"), "vae.safetensors"),
    ] {
        let out = models.join(name);
        place.ok(["convert", arg(&source), arg(&out), "--to", "f16"]);
    }
    let listing = place.ok(["models", arg(&models)]);
    for (name, what) in [
        ("sd1.gguf ", "Stable Diffusion 1.x, epsilon, F32 F16 "),
        ("sd35.gguf ", "a Stable Diffusion 3 transformer, F32 F16, "),
        ("flux.gguf ", "a FLUX transformer, F32 F16, "),
        ("t5.gguf ", "a T5 text encoder, F32 F16, "),
        ("vae.safetensors ", "an autoencoder, F16, "),
    ] {
        let line = listing.lines().find(|l| l.starts_with(name));
        let line = line.unwrap_or_else(|| panic!("no {name} in\n{listing}"));
        assert!(line.contains(what), "{line}");
        assert_eq!(
            line.ends_with("a part of a model"),
            name != "sd1.gguf ",
            "{line}"
        );
    }
    let json = place.json(["models", arg(&models)]);
    let rows = json["models"].as_array().expect("a list");
    assert_eq!(rows.len(), 5);
    let flux = rows
        .iter()
        .find(|r| r["name"] == "flux.gguf")
        .expect("a row");
    assert_eq!(flux["part"], "a FLUX transformer");
    assert!(flux["parameters"].as_u64().expect("a number") > 100_000);
}

#[test]
fn what_is_listed_can_be_named() {
    let place = Place::new();
    let models = place.join("m");
    std::fs::create_dir_all(models.join("deep")).expect("a folder");
    folder("sd1", &models.join("deep")).expect("a golden");
    let single = single_file("sd1", &models).expect("a golden");
    let gguf = models.join("small.gguf");
    place.ok(["convert", arg(&single), arg(&gguf), "--to", "q8_0"]);
    let listing = place
        .command()
        .arg("models")
        .arg("--json")
        .env("AQUATINT_MODELS", &models)
        .output();
    let json: serde_json::Value =
        serde_json::from_slice(&listing.expect("the binary starts").stdout).expect("JSON");
    let rows = json["models"].as_array().expect("a list");
    assert_eq!(rows.len(), 4);
    let names = rows.iter().filter_map(|r| r["name"].as_str());
    for (i, name) in names.chain(["sd1", "small"]).enumerate() {
        let output = format!("{i}.png");
        let run = place
            .command()
            .env("AQUATINT_MODELS", &models)
            .args(quick(&["-m", name, "-o", &output]))
            .output()
            .expect("the binary starts");
        assert!(
            run.status.success(),
            "{name}: {}",
            common::text(&run.stderr)
        );
        assert!(place.join(&output).is_file());
    }
}

#[test]
fn the_model_directory_is_under_home_unless_said() {
    let place = Place::new();
    let models = place.join(".local/share/aquatint/models");
    std::fs::create_dir_all(&models).expect("a folder");
    folder("sd1", &models).expect("a golden");
    assert!(place.ok(["models"]).contains("sd1"));
    place.ok(quick(&["-m", "sd1", "-o", "a.png"]));
}

#[test]
fn a_path_goes_before_a_name() {
    let place = Place::new();
    let models = place.join("m");
    std::fs::create_dir(&models).expect("a folder");
    folder("sd1", &models).expect("a golden");
    let named = models.join("sd1");
    std::fs::rename(&named, models.join("same")).expect("renamed");
    folder("sd2", place.path()).expect("a golden");
    std::fs::rename(place.join("sd2"), place.join("same")).expect("renamed");
    let run = place
        .command()
        .env("AQUATINT_MODELS", &models)
        .args(quick(&["-m", "same", "-o", "a.png", "--json"]))
        .output()
        .expect("the binary starts");
    let json: serde_json::Value = serde_json::from_slice(&run.stdout).expect("JSON");
    assert_eq!(json["family"], "sd2");
}

#[test]
fn a_wrong_name_is_answered_with_the_nearest() {
    let place = Place::new();
    let said = place.refused(1, quick(&["-m", "emoij"]));
    assert!(said.contains("did you mean emoji?"), "{said}");
    let models = place.join("m");
    std::fs::create_dir(&models).expect("a folder");
    std::fs::write(models.join("dreamshaper.safetensors"), b"").expect("a file");
    let run = place
        .command()
        .env("AQUATINT_MODELS", &models)
        .args(quick(&["-m", "dreamshapr"]))
        .output();
    let said = common::failure(1, &run.expect("the binary starts"));
    assert!(
        said.contains("did you mean dreamshaper.safetensors?"),
        "{said}"
    );
}

#[test]
fn without_home_there_is_still_the_model_inside() {
    let place = Place::new();
    for home in [None, Some("")] {
        let mut command = place.command();
        command.env_remove("HOME");
        home.map(|h| command.env("HOME", h));
        let output = command.arg("models").output().expect("the binary starts");
        assert!(output.status.success());
        assert!(common::text(&output.stdout).starts_with("emoji "));
    }
}

#[test]
fn a_folder_that_is_not_there_is_a_failure() {
    let place = Place::new();
    let said = place.refused(1, ["models", "nowhere"]);
    assert!(said.contains("nowhere: no such folder"), "{said}");
}

#[test]
fn one_model_can_be_given_itself() {
    let listing = Place::new().ok(["models", arg(&golden("sdxl"))]);
    assert!(listing.contains("Stable Diffusion XL"), "{listing}");
}
