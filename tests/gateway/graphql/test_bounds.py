"""How large a query may be, what is valid, and what an answer may cost."""

from __future__ import annotations

from typing import Any

from sorna.errors import InvalidRequest
from sorna.gateway.graphql.bounds import MAX_DEPTH, MAX_NESTED, MAX_SELECTIONS, check_cost, operation_of, read_document
from sorna.gateway.graphql.schema import read_query, schemas
from sorna.testing.unit import UnitTestCase


class BoundsTests(UnitTestCase):
    """Everything a query is refused for before anything is asked."""

    def setUp(self) -> None:
        self.schema = schemas(is_admin=True)[0]

    def refused(self, text: str, *words: str, **variables: Any) -> None:
        """See that a query is refused with these words."""
        with self.assertRaises(InvalidRequest) as caught:
            self.cost(text, **variables)
        for word in words:
            self.assertIn(word, caught.exception.detail)

    def cost(self, text: str, **variables: Any) -> None:
        document = read_document(self.schema, text)
        check_cost(self.schema, document, operation_of(document, None), variables)

    def test_not_valid(self) -> None:
        """What is no query of this schema is refused with its first error."""
        for text, word in (
            ("", "Syntax Error"),
            ("{", "Syntax Error"),
            ("{ nothing }", "Cannot query field 'nothing'"),
            ("{ keypair }", "must have a selection"),
            ("{ keypair { access_key { x } } }", "must not have a selection"),
            ("query($x: Int!) { keypair(access_key: $x) { user_id } }", "position expecting type 'String'"),
            ("fragment f on KeyPair { ...f } { keypair { ...f } }", "Cannot spread fragment"),
            ("{ __schema { types { name } } }", "introspection"),
            ('{ __type(name: "KeyPair") { name } }', "introspection"),
            ("type X { a: Int }", "operations and fragments"),
            ("subscription { x }", "subscription"),
            ("query a { keypair { user_id } } query b { keypair { user_id } }", "operationName"),
        ):
            self.refused(text, word)

    def test_too_large(self) -> None:
        """Length, tokens, selections, nested ones and depth are bounded."""
        self.refused("{ keypair { user_id } }" + " " * 20_000, "characters")
        self.refused("{ keypair { " + "user_id " * 1001 + "} }", "tokens")
        for text in (
            "{ keypair { " + "user_id " * MAX_SELECTIONS + "} }",
            "{ " + "keypair { user_id } " * (MAX_NESTED + 1) + "}",
            "{ keypair { " + "...f " * (MAX_NESTED + 1) + "} } fragment f on KeyPair { user_id }",
            "{ " + "... { " * MAX_DEPTH + "keypair { user_id }" + " }" * MAX_DEPTH + " }",
        ):
            self.refused(text, f"at most {MAX_SELECTIONS} selections")
        self.refused("{ " + "... { " * 200 + "keypair { user_id }" + " }" * 200 + " }", "")

    def test_cost(self) -> None:
        """An answer may not be larger than what the reactor makes in a few milliseconds."""
        self.cost("{ keypairs { access_key compute_sessions { sess_id status } } }")
        self.refused("{ keypairs(limit: 500) { access_key compute_sessions { sess_id } } }", "values")
        self.refused(
            "{ keypairs(limit: 99999) { a: user_id b: user_id c: user_id d: user_id e: user_id f: user_id } }", "values"
        )
        self.cost("{ keypairs(limit: 0) { access_key compute_sessions(limit: 500) { sess_id } } }")
        self.cost("query($n: Int) { keypairs(limit: $n) { user_id compute_sessions { sess_id status } } }", n=20)
        self.refused(
            "query($n: Int) { keypairs(limit: $n) { user_id compute_sessions { sess_id status } } }", "values", n=400
        )
        self.cost("query($n: Int) { keypairs(limit: $n) { user_id } }", n="many")
        page = "{ compute_session_list(limit: %d, offset: 0) { items { ...f ... { status } } total_count } } "
        fragment = "fragment f on ComputeSession { sess_id lang agent }"
        self.cost(page % 100 + fragment)
        self.refused(page % 500 + fragment, "values")

    def test_a_document_is_read_once(self) -> None:
        """The same text of the same role is parsed once; users and administrators have different schemas."""
        text = "{ keypair { access_key } }"
        self.assertIs(read_query(text, is_admin=True), read_query(text, is_admin=True))
        self.assertIsNot(read_query(text, is_admin=True).schema, read_query(text, is_admin=False).schema)

    def test_user_ids_of_both_generations(self) -> None:
        """A user id is a number or a text, as the document says."""
        for kind in ("Int", "String", "Int!", "String!"):
            read_query(f"query($u: {kind}) {{ keypairs(user_id: $u) {{ user_id }} }}", is_admin=True)
        with self.assertRaises(InvalidRequest) as caught:
            read_query("query($u: Boolean) { keypairs(user_id: $u) { user_id } }", is_admin=True)
        self.assertIn("Int", caught.exception.detail)
