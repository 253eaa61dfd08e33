//! Reads the content of an instrumented instance after `load`. A compiler process writes it into the component.

use bytes::Bytes;
use modelhost_core::error::{Error, ErrorCode};
use wasmtime::component::types::{ComponentFunc, ComponentItem, Type};
use wasmtime::component::{ComponentExportIndex, Instance, Lift, WasmList};
use wasmtime::{AsContextMut, Store};

use crate::compiler::Value;
use crate::state::State;

/// The interface that instrumenting adds. It has a function without parameters for each memory and each global.
const ACCESS: &str = "wasmtime:wizer/access";

/// Calls all of its functions. Errors: plugin fault, if a call fails or the interface is not as expected.
pub(crate) async fn read(
    store: &mut Store<State>,
    instance: Instance,
) -> Result<Vec<(String, Value)>, Error> {
    let fault = |error: wasmtime::Error| crate::fault::in_step("snapshot", &error);
    let missing =
        || Error::new(ErrorCode::PluginFault, format!("snapshot: the instance does not export {ACCESS}"));
    let (item, access) = instance.get_export(&mut *store, None, ACCESS).ok_or_else(missing)?;
    let ComponentItem::ComponentInstance(access_type) = item else { return Err(missing()) };
    let engine = store.engine().clone();
    let mut values = Vec::new();
    for (name, export) in access_type.exports(&engine) {
        let ComponentItem::ComponentFunc(function) = export.ty else { continue };
        let index = instance.get_export_index(&mut *store, Some(&access), name).ok_or_else(missing)?;
        let stop = store.data().stop.clone();
        let value = stop.within(call(store, instance, index, &function)).await.map_err(fault)?;
        values.push((name.to_owned(), value));
    }
    Ok(values)
}

async fn call(
    store: &mut Store<State>,
    instance: Instance,
    export: ComponentExportIndex,
    function: &ComponentFunc,
) -> wasmtime::Result<Value> {
    Ok(match function.results().next() {
        Some(Type::List(_)) => {
            let list: WasmList<u8> = typed(store, instance, export).await?;
            Value::Memory(Bytes::copy_from_slice(list.as_le_slice(store.as_context_mut())))
        }
        Some(Type::S32) => Value::Number(typed::<i32>(store, instance, export).await?.cast_unsigned().into()),
        Some(Type::S64) => Value::Number(typed::<i64>(store, instance, export).await?.cast_unsigned()),
        Some(Type::Float32) => Value::Number(typed::<f32>(store, instance, export).await?.to_bits().into()),
        Some(Type::Float64) => Value::Number(typed::<f64>(store, instance, export).await?.to_bits()),
        other => return Err(wasmtime::format_err!("an export tells {other:?}")),
    })
}

async fn typed<R: Lift + Send + Sync + 'static>(
    store: &mut Store<State>,
    instance: Instance,
    export: ComponentExportIndex,
) -> wasmtime::Result<R> {
    let function = instance.get_typed_func::<(), (R,)>(&mut *store, export)?;
    Ok(function.call_async(store, ()).await?.0)
}
