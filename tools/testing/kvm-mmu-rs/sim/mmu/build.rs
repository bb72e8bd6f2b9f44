// SPDX-License-Identifier: GPL-2.0

//! Sets what Kbuild sets for the MMU's crate.

use std::{
    env,
    path::Path, //
};

fn main() {
    let here = env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    let bindings = Path::new(&here).join("bindings.rs");

    println!("cargo:rustc-env=KVM_MMU_BINDINGS={}", bindings.display());
    println!("cargo:rerun-if-changed=build.rs");
    println!(
        "cargo:rustc-check-cfg=cfg(CONFIG_KVM_PROVE_MMU, CONFIG_KVM_RUST_MMU_KUNIT_TEST, \
         CONFIG_KVM_RUST_MMU_SMALL_TABLES)"
    );
    if env::var_os("CARGO_FEATURE_SMALL").is_some() {
        println!("cargo:rustc-cfg=CONFIG_KVM_RUST_MMU_SMALL_TABLES");
    }
    if env::var_os("CARGO_FEATURE_PROVE").is_some() {
        println!("cargo:rustc-cfg=CONFIG_KVM_PROVE_MMU");
    }
}
