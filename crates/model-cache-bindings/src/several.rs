//! Arguments that are one thing or several of them.

use pyo3::{exceptions::PyTypeError, prelude::*};

/// One `T`, or those an iterable gives; none for None.
///
/// # Errors
/// `TypeError` with the name of the argument.
pub(crate) fn several<T>(name: &str, value: Option<Bound<'_, PyAny>>) -> PyResult<Vec<T>>
where
    T: for<'a, 'py> FromPyObject<'a, 'py>,
{
    let Some(value) = value else { return Ok(Vec::new()) };
    if let Ok(one) = value.extract() {
        return Ok(vec![one]);
    }
    let refused = |wrong: &Bound<'_, PyAny>| {
        let kind = wrong.get_type().qualname().map_or_else(|_| "?".to_owned(), |kind| kind.to_string());
        PyTypeError::new_err(format!("{name} must be one of its kind or an iterable of several, and {kind} is neither"))
    };
    let items = value.try_iter().map_err(|_| refused(&value))?;
    items.map(|item| item.and_then(|item| item.extract().map_err(|_| refused(&item)))).collect()
}
