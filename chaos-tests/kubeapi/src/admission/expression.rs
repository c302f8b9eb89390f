//! One CEL expression: compiled once, evaluated for each write.
//!
//! The interpreter knows no types, so what the real server's compiler would find is looked for here: names that nobody
//! declared, variables that come later or never, functions that one of the two sides does not have. A misspelt policy is
//! refused at its creation, as there.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, LazyLock};

use cel::common::ast::{EntryExpr, Expr, IdedExpr};
use cel::{Context, Env, Program, Value as Cel};
use serde_json::Value;

use super::Request;
use super::value::{cel, map};

/// The standard library and the extension for strings; `join` is of the latter.
static ENVIRONMENT: LazyLock<Arc<Env>> = LazyLock::new(|| {
    let mut env = Env::stdlib();
    env.add_extension(cel::extensions::strings).expect("invariant: nothing else declares its functions");
    Arc::new(env)
});

/// Functions that the real server has as well and whose results are the same. Operators have names with `_` or `@`.
const FUNCTIONS: [&str; 11] = [
    "size",
    "startsWith",
    "endsWith",
    "contains",
    "dyn",
    "string",
    "int",
    "join",
    "split",
    "lowerAscii",
    "replace",
];

/// What every expression may name. `authorizer` is not served.
const ROOTS: [&str; 5] = ["object", "oldObject", "request", "params", "namespaceObject"];

/// What an expression may name.
#[derive(Debug, Clone, Default)]
pub(super) struct Declared {
    /// Variables that come before it.
    pub(super) names: Vec<String>,
    variables: bool,
}

impl Declared {
    /// For expressions that may use `variables`.
    pub(super) fn with_variables() -> Self {
        Self { names: Vec::new(), variables: true }
    }
}

/// A compiled expression.
pub(super) struct Expression {
    text: String,
    program: Program,
}

impl fmt::Debug for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Expression").field(&self.text).finish()
    }
}

impl Expression {
    /// Parses `text` and checks what it names.
    pub(super) fn compile(text: &str, declared: &Declared) -> Result<Self, String> {
        let program = ENVIRONMENT.compile(text).map_err(|errors| errors.to_string().replace('\n', " "))?;
        let mut names = Names { declared, bound: Vec::new() };
        names.check(program.expression())?;
        Ok(Self { text: text.to_owned(), program })
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Evaluates it.
    pub(super) fn value(&self, scope: &Scope) -> Result<Cel, String> {
        self.program.execute(&scope.context).map_err(|error| {
            let why = scope.failed_variable(&error).unwrap_or_else(|| error.to_string());
            format!("expression '{}' resulted in error: {why}", self.text.trim())
        })
    }

    /// Evaluates it to a verdict.
    pub(super) fn holds(&self, scope: &Scope) -> Result<bool, String> {
        let value = self.value(scope)?;
        if let Cel::Bool(holds) = value {
            return Ok(holds);
        }
        Err(format!(
            "expression '{}' resulted in error: must evaluate to bool, not to {}",
            self.text.trim(),
            value.type_of()
        ))
    }
}

/// What expressions see of one request.
pub(super) struct Scope {
    context: Context<'static, 'static>,
    variables: Vec<(String, Cel)>,
    /// Variables that could not be evaluated, and why.
    failed: BTreeMap<String, String>,
}

impl Scope {
    pub(super) fn new(described: &Value, request: &Request<'_>) -> Self {
        let mut context = Context::with_env(Arc::clone(&ENVIRONMENT));
        for (name, value) in [
            ("object", cel(request.new)),
            ("oldObject", cel(request.old)),
            ("request", cel(described)),
            ("params", Cel::Null),
            ("namespaceObject", cel(request.namespace_object)),
        ] {
            context.add_variable_from_value(name, value);
        }
        Self { context, variables: Vec::new(), failed: BTreeMap::new() }
    }

    /// Evaluates a policy's variables, each with those before it. The real server does so when they are used; here all are
    /// evaluated, and one that fails harms only who uses it, which comes to the same.
    pub(super) fn evaluate(&mut self, variables: &[(String, Expression)]) {
        for (name, expression) in variables {
            match expression.value(self) {
                Ok(value) => self.variables.push((name.clone(), value)),
                Err(error) => drop(self.failed.insert(name.clone(), error)),
            }
            self.context.add_variable_from_value("variables", map(self.variables.iter().cloned()));
        }
    }

    /// A variable that failed is missing in `variables`: why it failed is the better message.
    fn failed_variable(&self, error: &cel::ExecutionError) -> Option<String> {
        let cel::ExecutionError::NoSuchKey(key) = error else { return None };
        let why = self.failed.get(key.as_str())?;
        Some(format!("composited variable \"{key}\" fails to evaluate: {why}"))
    }
}

/// Looks for names that nobody declared.
struct Names<'d> {
    declared: &'d Declared,
    /// Variables of the macros around.
    bound: Vec<String>,
}

impl Names<'_> {
    fn check(&mut self, expression: &IdedExpr) -> Result<(), String> {
        match &expression.expr {
            Expr::Unspecified | Expr::Literal(_) => Ok(()),
            Expr::Ident(name) => self.root(name),
            Expr::Select(select) => {
                let of_variables = matches!(&select.operand.expr, Expr::Ident(root) if root == "variables");
                if of_variables { self.variable(&select.field) } else { self.check(&select.operand) }
            }
            Expr::Call(call) => {
                let operator = call.func_name.contains(['_', '@']);
                if !operator && !FUNCTIONS.contains(&call.func_name.as_str()) {
                    return Err(format!(
                        "undeclared reference to '{}', or a function that the embedded API does not serve",
                        call.func_name
                    ));
                }
                call.target.iter().try_for_each(|target| self.check(target))?;
                call.args.iter().try_for_each(|argument| self.check(argument))
            }
            Expr::List(list) => list.elements.iter().try_for_each(|element| self.check(element)),
            Expr::Map(map) => map.entries.iter().try_for_each(|entry| self.entry(&entry.expr)),
            Expr::Struct(fields) => Err(format!("undeclared reference to '{}'", fields.type_name)),
            Expr::Comprehension(inner) => {
                self.check(&inner.iter_range)?;
                self.check(&inner.accu_init)?;
                let before = self.bound.len();
                self.bound.push(inner.iter_var.clone());
                self.bound.extend(inner.iter_var2.clone());
                self.bound.push(inner.accu_var.clone());
                for part in [&inner.loop_cond, &inner.loop_step, &inner.result] {
                    self.check(part)?;
                }
                self.bound.truncate(before);
                Ok(())
            }
        }
    }

    fn entry(&mut self, entry: &EntryExpr) -> Result<(), String> {
        match entry {
            EntryExpr::StructField(field) => self.check(&field.value),
            EntryExpr::MapEntry(entry) => {
                self.check(&entry.key)?;
                self.check(&entry.value)
            }
        }
    }

    fn root(&self, name: &str) -> Result<(), String> {
        let known = ROOTS.contains(&name) || self.bound.iter().any(|bound| bound == name);
        if known { Ok(()) } else { Err(format!("undeclared reference to '{name}'")) }
    }

    fn variable(&self, name: &str) -> Result<(), String> {
        if !self.declared.variables {
            return Err("undeclared reference to 'variables'".to_owned());
        }
        let known = self.declared.names.iter().any(|declared| declared == name);
        if known { Ok(()) } else { Err(format!("undefined field '{name}' in 'variables'")) }
    }
}
