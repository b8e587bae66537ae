//! Compiles the interfaces with protox, so that nobody needs protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["orlop/vmm/v1/vmm.proto", "orlop/agent/v1/agent.proto"];
    for file in files {
        println!("cargo:rerun-if-changed=proto/{file}");
    }
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
