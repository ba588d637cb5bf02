"""From the text of a query to a document that is valid and small enough to be executed on the reactor; pure.

Note [What a query may cost]
    graphql-core works through a document in one go, so its size bounds how long the reactor waits. The text and its
    tokens are bounded before it is parsed. Validation compares selections of the same name pair by pair, so selections,
    and the nested ones among them, are few: the worst document takes a few milliseconds. Execution takes about three
    microseconds for each value of the answer; how many there can be is known before, from the limits of the lists.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLField,
    GraphQLObjectType,
    GraphQLSchema,
    GraphQLSyntaxError,
    InlineFragmentNode,
    IntValueNode,
    NoSchemaIntrospectionCustomRule,
    OperationDefinitionNode,
    SelectionNode,
    SelectionSetNode,
    VariableNode,
    get_named_type,
    is_object_type,
    parse,
    specified_rules,
    validate,
)

from sorna.errors import InvalidRequest

MAX_LENGTH = 16 * 1024
MAX_TOKENS = 800
MAX_SELECTIONS = 120
MAX_NESTED = 24
MAX_DEPTH = 8
MAX_VALUES = 3000
# A list has as many entries when its query does not say; one within another list has fewer.
DEFAULT_LIMIT, MAX_LIMIT = 100, 500
INNER_LIMIT = 10

_RULES = (*specified_rules, NoSchemaIntrospectionCustomRule)


def read_document(schema: GraphQLSchema, text: str) -> DocumentNode:
    """Parse and validate a query; see Note [What a query may cost].

    :raises InvalidRequest: it is none, or too large; with the first error.
    """
    if len(text) > MAX_LENGTH:
        raise InvalidRequest(f"a query has at most {MAX_LENGTH} characters")
    try:
        document = parse(text, no_location=True, max_tokens=MAX_TOKENS)
    except GraphQLSyntaxError as error:
        raise InvalidRequest(error.message) from None
    except RecursionError:
        raise InvalidRequest("the query is nested too deeply") from None
    _check_size(document)
    wrong = validate(schema, document, _RULES, max_errors=1)
    if wrong:
        raise InvalidRequest(wrong[0].message)
    return document


def operation_of(document: DocumentNode, name: str | None) -> OperationDefinitionNode:
    """Find the operation that is to be executed.

    :raises InvalidRequest: there is none of this name, or several and no name.
    """
    operations = [one for one in document.definitions if isinstance(one, OperationDefinitionNode)]
    found = [one for one in operations if name is None or (one.name is not None and one.name.value == name)]
    if len(found) != 1:
        raise InvalidRequest("operationName must name one of the query's operations")
    return found[0]


def check_cost(
    schema: GraphQLSchema, document: DocumentNode, operation: OperationDefinitionNode, variables: Mapping[str, Any]
) -> None:
    """Refuse an operation whose answer may have more than :data:`MAX_VALUES` values.

    :raises InvalidRequest: it may.
    """
    root = schema.get_root_type(operation.operation)
    if root is not None:
        _Cost(document, variables).add(operation.selection_set, root, 1, DEFAULT_LIMIT)


def _check_size(document: DocumentNode) -> None:
    selections = nested = 0
    for definition in document.definitions:
        if not isinstance(definition, OperationDefinitionNode | FragmentDefinitionNode):
            raise InvalidRequest("a query consists of operations and fragments")
        for selection, depth in _selections(definition.selection_set, 1):
            selections += 1
            nested += not isinstance(selection, FieldNode) or selection.selection_set is not None
            if selections > MAX_SELECTIONS or nested > MAX_NESTED or depth > MAX_DEPTH:
                raise InvalidRequest(
                    f"a query has at most {MAX_SELECTIONS} selections, {MAX_NESTED} of them nested, {MAX_DEPTH} deep"
                )


def _selections(selection_set: SelectionSetNode, depth: int) -> Iterator[tuple[SelectionNode, int]]:
    for selection in selection_set.selections:
        yield selection, depth
        inner = selection.selection_set if isinstance(selection, FieldNode | InlineFragmentNode) else None
        if inner is not None:
            yield from _selections(inner, depth + 1)


class _Cost:
    """Adds up how many values an answer may have, and stops when there are too many."""

    def __init__(self, document: DocumentNode, variables: Mapping[str, Any]) -> None:
        self._variables = variables
        self._fragments = {
            one.name.value: one.selection_set for one in document.definitions if isinstance(one, FragmentDefinitionNode)
        }
        self._values = 0

    def add(self, selection_set: SelectionSetNode, parent: GraphQLObjectType, times: int, limit: int) -> None:
        """Add the values of a selection that is answered so many times; a list without a limit has ``limit`` entries."""
        for selection in selection_set.selections:
            self._values += times
            if self._values > MAX_VALUES:
                raise InvalidRequest(f"the answer may have more than {MAX_VALUES} values: ask for fewer at once")
            if isinstance(selection, FragmentSpreadNode):
                self.add(self._fragments[selection.name.value], parent, times, limit)
            elif isinstance(selection, InlineFragmentNode):
                self.add(selection.selection_set, parent, times, limit)
            elif isinstance(selection, FieldNode) and selection.selection_set is not None:
                field = parent.fields[selection.name.value]
                inner = get_named_type(field.type)
                if is_object_type(inner):
                    entries = self._entries(selection, field, limit)
                    self.add(selection.selection_set, inner, times * entries, INNER_LIMIT)

    def _entries(self, node: FieldNode, field: GraphQLField, default: int) -> int:
        # Every list has a limit, or is the inside of a page that has one.
        if "limit" not in field.args:
            return 1
        value = next((one.value for one in node.arguments or () if one.name.value == "limit"), None)
        if isinstance(value, VariableNode):
            given = self._variables.get(value.name.value)
        else:
            given = int(value.value) if isinstance(value, IntValueNode) else None
        return min(MAX_LIMIT, max(0, given)) if isinstance(given, int) else default
