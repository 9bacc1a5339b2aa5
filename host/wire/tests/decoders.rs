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
    tape.free(x);
    tape.settings(8, &[1, 14]);
    tape.forget_templates();
    tape.bytes().to_vec()
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
            assert_eq!((*id, *first_new), (TemplateId(0), StorageId(1)));
            assert_eq!(*found, &Arc::new(template.clone()));
            assert_eq!(*inputs, [StorageId(0); 3]);
            assert_eq!(*scalars, [1, 2, 3, 4]);
        }
        kinds.push(format!("{record:?}").split([' ', '{']).next().unwrap().to_owned());
    }
    let expected = "Alloc Define Op UploadInline Upload BindWeight StoreWeight Resize Seed \
                    SetGeneratorState GetGeneratorState Symbol Mark Run Read Read Fence Skip Free \
                    Settings ForgetTemplates";
    assert_eq!(kinds, expected.split_whitespace().collect::<Vec<_>>());
    assert_eq!(decoder.next_storage(), StorageId(1 + 2 + 5 + 10));
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
