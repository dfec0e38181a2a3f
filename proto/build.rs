//! Compiles the .proto files without protoc, and writes the Debug of every message that holds a secret.
//!
//! prost derives Debug, and a derived Debug prints secrets. The fields that CSI marks `csi_secret` are found in the descriptors,
//! so that no message can be forgotten: their messages get a Debug made here that prints the other fields and, of a secret one,
//! only how many keys it has.

use std::{error::Error, fmt::Write as _, path::PathBuf};

use protox::prost_reflect::{DescriptorPool, MessageDescriptor, Value};

const FILES: [&str; 3] = [
    "csi/v1/csi.proto",
    "storagelink/v1/storagelink.proto",
    "pluginregistration/v1/api.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    for file in FILES {
        println!("cargo:rerun-if-changed={file}");
    }
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let mut compiler = protox::Compiler::new(["."])?;
    compiler
        .include_source_info(true)
        .include_imports(true)
        .open_files(FILES)?;
    let pool = compiler.descriptor_pool();
    let secret = secret_messages(&pool);
    std::fs::write(out.join("csi_secret_debug.rs"), debug_impls(&secret)?)?;

    let descriptors = compiler.file_descriptor_set();
    std::fs::write(out.join("descriptors.bin"), compiler.encode_file_descriptor_set())?;
    let names: Vec<String> = secret
        .iter()
        .map(|(message, _)| format!(".{}", message.full_name()))
        .collect();
    let builder = tonic_prost_build::configure()
        .generate_default_stubs(true)
        .skip_debug(names);
    builder.compile_fds(descriptors)?;
    Ok(())
}

/// Messages with at least one field marked `csi_secret`, each with the names of those fields.
///
/// Only maps may be marked: their Debug tells the number of keys, which of a string would be its length.
fn secret_messages(pool: &DescriptorPool) -> Vec<(MessageDescriptor, Vec<String>)> {
    let mark = pool
        .get_extension_by_name("csi.v1.csi_secret")
        .expect("csi.proto declares csi_secret");
    pool.all_messages()
        .filter_map(|message| {
            let fields: Vec<String> = message
                .fields()
                .filter(|field| matches!(field.options().get_extension(&mark).as_ref(), Value::Bool(true)))
                .map(|field| {
                    assert!(field.is_map(), "{}: a secret that is no map", field.full_name());
                    field.name().to_owned()
                })
                .collect();
            (!fields.is_empty()).then_some((message, fields))
        })
        .collect()
}

fn debug_impls(messages: &[(MessageDescriptor, Vec<String>)]) -> Result<String, Box<dyn Error>> {
    let mut code = String::new();
    for (message, secret) in messages {
        let name = message.name();
        if message.parent_message().is_some() || message.oneofs().any(|oneof| !oneof.is_synthetic()) {
            return Err(format!(
                "{}: secrets in nested messages or beside a oneof are not handled",
                message.full_name()
            )
            .into());
        }
        writeln!(code, "impl ::core::fmt::Debug for {name} {{")?;
        writeln!(
            code,
            "    fn fmt(&self, f: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {{"
        )?;
        writeln!(code, "        f.debug_struct({name:?})")?;
        for field in message.fields() {
            let field = field.name();
            if secret.iter().any(|s| s == field) {
                writeln!(
                    code,
                    "            .field({field:?}, &crate::Redacted(self.{field}.len()))"
                )?;
            } else {
                writeln!(code, "            .field({field:?}, &self.{field})")?;
            }
        }
        writeln!(code, "            .finish()\n    }}\n}}")?;
    }
    Ok(code)
}
