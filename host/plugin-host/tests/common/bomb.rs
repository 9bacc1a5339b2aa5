//! A small component that takes a compiler very long: one loop over thousands of variables with
//! thousands of ways back to its head, each of which carries all variables.

const LOCALS: u32 = 4_000;

/// A component whose one function has `steps` steps.
pub fn component(steps: u32) -> Vec<u8> {
    let mut body = Vec::new();
    leb(&mut body, 1);
    leb(&mut body, LOCALS);
    body.push(0x7e); // i64
    body.extend([0x03, 0x40]); // loop
    for step in 0..steps {
        body.push(0x20); // local.get
        leb(&mut body, step % LOCALS);
        body.push(0x20);
        leb(&mut body, step.wrapping_mul(7) % LOCALS);
        body.push(0x7c); // i64.add
        body.push(0x22); // local.tee
        leb(&mut body, step.wrapping_mul(13) % LOCALS);
        body.push(0xa7); // i32.wrap_i64
        body.extend([0x0d, 0x00]); // br_if 0
    }
    body.extend([0x0b, 0x0b]); // the loop's end, the function's end

    let mut code = Vec::new();
    leb(&mut code, 1);
    leb(&mut code, body.len() as u32);
    code.extend(body);

    let mut module = b"\0asm\x01\0\0\0".to_vec();
    section(&mut module, 1, &[1, 0x60, 0, 0]);
    section(&mut module, 3, &[1, 0]);
    section(&mut module, 10, &code);

    let mut component = b"\0asm\x0d\0\x01\0".to_vec();
    section(&mut component, 1, &module);
    component
}

fn section(out: &mut Vec<u8>, id: u8, content: &[u8]) {
    out.push(id);
    leb(out, content.len() as u32);
    out.extend(content);
}

fn leb(out: &mut Vec<u8>, mut number: u32) {
    loop {
        let byte = (number & 0x7f) as u8;
        number >>= 7;
        if number == 0 {
            return out.push(byte);
        }
        out.push(byte | 0x80);
    }
}
