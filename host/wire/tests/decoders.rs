//! Every decoder: what is written is read back, and any bytes are refused or read, never a panic.

use std::sync::Arc;

use genie_wire::frame::{FrameHeader, FrameKind, HEADER_BYTES};
use genie_wire::record::{MarkKind, RegionSpan};
use genie_wire::{
    DType, ErrorCode, OutputSpec, Record, Reply, StorageId, TapeDecoder, TapeWriter, Template,
    TemplateId, TensorMeta, Value, WireError,
};
use proptest::collection::vec;
use proptest::prelude::*;

fn meta() -> impl Strategy<Value = TensorMeta> {
    (0u8..16, 0u64..1 << 40, vec((0u64..1 << 20, 0u64..1 << 20), 0..5), any::<bool>()).prop_map(
        |(dtype, offset, dims, row_major)| {
            let (sizes, strides): (Vec<u64>, Vec<u64>) = dims.into_iter().unzip();
            let plain = TensorMeta::contiguous(DType(dtype), &sizes);
            if row_major {
                TensorMeta { offset, ..plain }
            } else {
                TensorMeta { dtype: DType(dtype), offset, sizes, strides }
            }
        },
    )
}

/// Arguments over 3 slots and 4 scalar words.
fn argument() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::None),
        Just(Value::UndefinedTensor),
        Just(Value::Generator),
        (0u32..3, meta()).prop_map(|(slot, meta)| Value::Tensor { slot, meta }),
        (0u32..3, 0u8..12, any::<bool>()).prop_map(|(scalar, dtype, wrapped)| {
            Value::ScalarTensor { scalar, dtype: DType(dtype), wrapped }
        }),
        any::<i64>().prop_map(Value::Int),
        (-1e300f64..1e300).prop_map(Value::Double),
        any::<bool>().prop_map(Value::Bool),
        (-1e9f64..1e9, -1e9f64..1e9).prop_map(|(re, im)| Value::Complex(re, im)),
        ".{0,12}".prop_map(Value::String),
        (0u32..4).prop_map(|scalar| Value::VaryingDouble { scalar }),
        (0u32..4).prop_map(|scalar| Value::VaryingInt { scalar }),
        (0u32..3).prop_map(|scalar| Value::VaryingComplex { scalar }),
        prop::option::of(0u8..8).prop_map(|accelerator| Value::Device { accelerator }),
        vec(any::<i64>(), 0..6).prop_map(Value::IntList),
    ];
    leaf.prop_recursive(2, 8, 4, |inner| vec(inner, 0..4).prop_map(Value::List))
}

fn output() -> impl Strategy<Value = OutputSpec> {
    prop_oneof![
        Just(OutputSpec::Undefined),
        (0u32..2, meta()).prop_map(|(index, meta)| OutputSpec::New { index, meta }),
        (0u32..3, meta()).prop_map(|(slot, meta)| OutputSpec::Alias { slot, meta }),
    ]
}

fn template() -> impl Strategy<Value = Template> {
    (
        "[a-z:._]{1,20}",
        vec(0u32..3, 0..3),
        any::<bool>(),
        vec(argument(), 0..5),
        vec(output(), 0..4),
    )
        .prop_map(|(op, mutated, random, args, outputs)| Template {
            op,
            slots: 3,
            scalars: 4,
            mutated,
            random,
            new_storages: vec![16, 1 << 30],
            args,
            outputs,
        })
}

proptest! {
    #[test]
    fn templates_round_trip(template in template()) {
        let mut bytes = Vec::new();
        template.encode(&mut bytes);
        prop_assert_eq!(Template::decode(&bytes), Ok(template));
    }

    #[test]
    fn cut_templates_are_refused(template in template(), cut in any::<prop::sample::Index>()) {
        let mut bytes = Vec::new();
        template.encode(&mut bytes);
        bytes.truncate(cut.index(bytes.len()));
        prop_assert!(Template::decode(&bytes).is_err());
    }

    #[test]
    fn replies_round_trip(token: u64, bytes in vec(any::<u8>(), 0..64), text in ".{0,40}") {
        let outputs = vec![OutputSpec::Undefined];
        for reply in [
            Reply::Done,
            Reply::Reached { at_ns: token },
            Reply::Bytes(&bytes),
            Reply::Outputs { storage_bytes: vec![1, 2], outputs, scalars: &bytes },
            Reply::Error { code: ErrorCode::OutOfMemory, message: &text },
        ] {
            let mut encoded = Vec::new();
            reply.encode(token, &mut encoded);
            prop_assert_eq!(Reply::decode(&encoded), Ok((token, reply)));
        }
    }

    #[test]
    fn any_bytes_are_refused_or_read(bytes in vec(any::<u8>(), 0..256)) {
        let _ = Template::decode(&bytes);
        let _ = Reply::decode(&bytes);
        if let Some(header) = bytes.first_chunk::<HEADER_BYTES>() {
            let _ = FrameHeader::decode(*header);
        }
        let (mut decoder, mut position) = (TapeDecoder::new(), 0);
        while let Ok(Some(_)) = decoder.next(&bytes, &mut position) {}
        prop_assert!(position <= bytes.len());
    }

    /// A real tape with bytes changed: decoded ids still exist, lengths stay within the bytes.
    #[test]
    fn mutants_of_a_tape_are_refused_or_read(
        template in template(),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    ) {
        let mut bytes = tape(&template);
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let (mut decoder, mut position) = (TapeDecoder::new(), 0);
        loop {
            let next = match decoder.next(&bytes, &mut position) {
                Ok(Some(Record::Op { inputs, first_new, .. })) => {
                    prop_assert!(inputs.iter().all(|id| *id < first_new));
                    continue;
                }
                Ok(Some(_)) => continue,
                Ok(None) => Ok(()),
                Err(error) => Err(error),
            };
            prop_assert!(next.is_err() || position == bytes.len());
            break;
        }
    }
}

/// One of each record.
fn tape(template: &Template) -> Vec<u8> {
    let mut encoded = Vec::new();
    template.encode(&mut encoded);
    let mut tape = TapeWriter::new();
    let x = tape.alloc(64);
    let id = tape.define(&encoded);
    let first = tape.op(id, &[x.0, x.0, x.0], &[1, 2, 3, 4], 2);
    tape.upload_inline(x, 0, &[1, 2, 3]);
    tape.upload(x, 8, 16, RegionSpan { region: 0, offset: 4096 });
    tape.bind_weight(first, &[7; 32]);
    tape.store_weight(first, &[8; 32]);
    tape.resize(x, 128);
    tape.seed(42);
    tape.set_generator_state(&[9; 16]);
    tape.get_generator_state(3);
    let symbol = tape.symbol("encoder.layer.0\0Block");
    tape.mark(MarkKind::ModuleEnter, symbol);
    tape.run(4, &encoded, &[x.0, x.0, x.0], &[1, 2, 3, 4], 5);
    tape.read(5, x, 0, 64, None);
    tape.read(6, x, 0, 64, Some(RegionSpan { region: 1, offset: 0 }));
    tape.fence(7);
    tape.skip(10);
    let body = body(id, symbol);
    let script = tape.define_script(2, &body);
    tape.run_script(script, &[x.0, first.0], &[true, false], 3);
    tape.free(x);
    tape.settings(8, &[1, 14]);
    tape.forget_templates();
    tape.bytes().to_vec()
}

/// A script over two storages: it frees both, the second only where a run says so.
fn body(template: TemplateId, symbol: u32) -> Vec<u8> {
    let mut body = TapeWriter::of_script(2);
    body.mark(MarkKind::ModuleEnter, symbol);
    let made = body.op(template, &[0, 1, 0], &[5, 6, 7, 8], 2);
    let more = body.alloc(32);
    body.free(StorageId(0));
    body.free(made);
    body.free(StorageId(1));
    body.mark(MarkKind::ModuleExit, symbol);
    assert_eq!((made, more), (StorageId(2), StorageId(4)));
    body.bytes().to_vec()
}

/// What a run stands for is what would be on the tape without scripts.
#[test]
fn a_script_stands_for_its_records() {
    let template = Template {
        op: "aten::add.Tensor".into(),
        slots: 3,
        scalars: 4,
        mutated: vec![],
        random: false,
        new_storages: vec![16, 1 << 30],
        args: vec![],
        outputs: vec![],
    };
    let mut encoded = Vec::new();
    template.encode(&mut encoded);
    let begin = |tape: &mut TapeWriter| {
        let id = tape.define(&encoded);
        let symbol = tape.symbol("encoder");
        let (x, y) = (tape.alloc(64), tape.alloc(64));
        (id, symbol, x, y)
    };
    let (mut short, mut long) = (TapeWriter::new(), TapeWriter::new());
    let (id, symbol, x, y) = begin(&mut short);
    let script = short.define_script(2, &body(id, symbol));
    begin(&mut long);
    for frees in [[false, false], [true, false], [false, true]] {
        let base = short.run_script(script, &[x.0, y.0], &frees, 3);
        long.mark(MarkKind::ModuleEnter, symbol);
        let made = long.op(id, &[x.0, y.0, x.0], &[5, 6, 7, 8], 2);
        long.alloc(32);
        assert_eq!(base, made);
        if frees[0] {
            long.free(x);
        }
        long.free(made);
        if frees[1] {
            long.free(y);
        }
        long.mark(MarkKind::ModuleExit, symbol);
    }
    let records = |bytes: &[u8]| {
        let (mut decoder, mut position) = (TapeDecoder::new(), 0);
        let mut records = Vec::new();
        while let Some(record) = decoder.next(bytes, &mut position).unwrap() {
            match record {
                Record::RunScript { .. } | Record::DefineScript { .. } => {}
                record => records.push(format!("{record:?}")),
            }
        }
        assert_eq!(position, bytes.len());
        records
    };
    assert_eq!(records(short.bytes()), records(long.bytes()));
}

#[test]
fn scripts_of_anything_but_operators_are_refused() {
    let refused = |externals, body: &TapeWriter| {
        let mut tape = TapeWriter::new();
        tape.define_script(externals, body.bytes());
        TapeDecoder::new().next(tape.bytes(), &mut 0).unwrap_err()
    };
    let mut body = TapeWriter::of_script(1);
    body.fence(1);
    let error = refused(1, &body);
    assert!(matches!(error, WireError::Unknown { what: "record of a script", .. }), "{error}");
    let mut body = TapeWriter::of_script(2);
    body.free(StorageId(0));
    let error = refused(1, &body);
    assert!(matches!(error, WireError::NoSuch { what: "storage at distance", .. }), "{error}");
    let mut body = TapeWriter::of_script(1);
    body.op(TemplateId(0), &[], &[], 0);
    assert!(matches!(refused(1, &body), WireError::NoSuch { what: "template", .. }));
    let mut body = TapeWriter::of_script(1);
    body.mark(MarkKind::ModuleEnter, 0);
    assert!(matches!(refused(1, &body), WireError::NoSuch { what: "symbol", .. }));
    let mut tape = TapeWriter::new();
    tape.run_script(0, &[], &[], 0);
    let error = TapeDecoder::new().next(tape.bytes(), &mut 0).unwrap_err();
    assert!(matches!(error, WireError::NoSuch { what: "script", .. }), "{error}");
}

#[test]
fn a_tape_is_read_as_it_was_written() {
    let template = Template {
        op: "aten::add.Tensor".into(),
        slots: 3,
        scalars: 4,
        mutated: vec![],
        random: false,
        new_storages: vec![16, 1 << 30],
        args: vec![],
        outputs: vec![],
    };
    let bytes = tape(&template);
    let (mut decoder, mut position) = (TapeDecoder::new(), 0);
    let mut kinds = Vec::new();
    while let Some(record) = decoder.next(&bytes, &mut position).unwrap() {
        if let Record::Op { id, template: found, inputs, scalars, first_new } = &record {
            assert_eq!(*found, &Arc::new(template.clone()));
            assert_eq!(*id, TemplateId(0));
            if *first_new == StorageId(1) {
                assert_eq!(*inputs, [StorageId(0); 3]);
                assert_eq!(*scalars, [1, 2, 3, 4]);
            } else {
                assert_eq!(*first_new, StorageId(18));
                assert_eq!(*inputs, [StorageId(0), StorageId(1), StorageId(0)]);
                assert_eq!(*scalars, [5, 6, 7, 8]);
            }
        }
        kinds.push(format!("{record:?}").split([' ', '{']).next().unwrap().to_owned());
    }
    let expected = "Alloc Define Op UploadInline Upload BindWeight StoreWeight Resize Seed \
                    SetGeneratorState GetGeneratorState Symbol Mark Run Read Read Fence Skip \
                    DefineScript RunScript Mark Op Alloc Free Free Mark Free Settings \
                    ForgetTemplates";
    assert_eq!(kinds, expected.split_whitespace().collect::<Vec<_>>());
    assert_eq!(decoder.next_storage(), StorageId(1 + 2 + 5 + 10 + 3));
}

#[test]
fn limits_are_enforced_by_name() {
    let header = FrameHeader { kind: FrameKind::Tape, body_bytes: u32::MAX }.encode();
    assert!(matches!(FrameHeader::decode(header), Err(WireError::TooLarge { what: "frame", .. })));
    let mut tape = TapeWriter::new();
    tape.alloc(1 << 41);
    let error = TapeDecoder::new().next(tape.bytes(), &mut 0).unwrap_err();
    assert!(matches!(error, WireError::TooLarge { what: "storage bytes", .. }));
}
