//! Compiles the kubelet's interfaces with protox, so that nobody needs protoc.

const INTERFACES: [&str; 3] = [
    "deviceplugin.proto",
    "dra.proto",
    "pluginregistration.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(INTERFACES, ["proto"])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
