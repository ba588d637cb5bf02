"""The types and the two roots of the administration's GraphQL, and the schemas made of them; knows no resolver's body.

Source: section 2.12 of the REST interface's specification, and what published clients ask for. Users have a root of their own
things and no mutation. User ids were numbers until 2018 and texts afterwards, and one release sends whichever the id looks
like: there is a schema for either, and a document belongs to the first in which it is valid.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from attrs import frozen
from graphql import DocumentNode, GraphQLObjectType, GraphQLSchema, build_schema

from sorna.errors import InvalidRequest
from sorna.gateway.graphql import fields
from sorna.gateway.graphql.bounds import read_document

_KERNEL_FIELDS = """
  access_key: String sess_id: String id: UUID session_id: UUID name: String role: String lang: String image: String
  tag: String type: String sess_type: String group_name: String status: String status_info: String status_changed: DateTime result: String
  created_at: DateTime terminated_at: DateTime agent: String container_id: String
  queue_position: Int queue_deadline: DateTime
  main_kernel_id: UUID status_data: JSONString occupied_slots: JSONString cpu_using: Float
  mem_slot: Int cpu_slot: Int gpu_slot: Int num_queries: BigInt cpu_used: BigInt
  mem_max_bytes: BigInt mem_cur_bytes: BigInt net_rx_bytes: BigInt net_tx_bytes: BigInt io_read_bytes: BigInt
  io_write_bytes: BigInt io_max_scratch_size: BigInt io_cur_scratch_size: BigInt
  registry: String live_stat: JSONString last_stat: JSONString
"""
_SESSION_FIELDS = """
  domain_name: String group_id: UUID user_email: String user_id: UUID created_user_email: String created_user_id: UUID
  cluster_template: String cluster_mode: String cluster_size: Int scaling_group: String starts_at: DateTime
  scheduled_at: DateTime startup_command: String service_ports: JSONString mounts: [String] occupying_slots: JSONString
  resource_opts: JSONString resoucre_opts: JSONString abusing_reports: [JSONString] idle_checks: JSONString
  agent_ids: [ID] dependencies: [ComputeSession]
"""
_COMMON = f"""
scalar BigInt scalar DateTime scalar UUID scalar JSONString

type ComputeSession {{
  {_KERNEL_FIELDS} {_SESSION_FIELDS} workers(status: String): [ComputeWorker] containers: [ComputeContainer]
}}
type ComputeContainer {{
  {_KERNEL_FIELDS} cluster_role: String cluster_idx: Int cluster_hostname: String resource_opts: JSONString
  preopen_ports: [Int]
}}
type ComputeWorker {{ {_KERNEL_FIELDS} }}
type ComputeSessionList {{ items: [ComputeSession] total_count: Int }}
type VirtualFolder {{
  id: UUID host: String name: String max_files: Int max_size: Int created_at: DateTime last_used: DateTime num_files: Int
  cur_size: BigInt creator: String group: String permission: String ownership_type: String user: String
  unmanaged_path: String usage_mode: String cloneable: Boolean status: String
}}
type VirtualFolderList {{ items: [VirtualFolder] total_count: Int }}
type Image {{
  name: String tag: String hash: String registry: String digest: String size_bytes: BigInt aliases: [String!]
}}
type UserInfo {{ full_name: String }}
type KeyPair {{
  user_id: String user_info: UserInfo access_key: String secret_key: String is_active: Boolean is_admin: Boolean
  resource_policy: String created_at: DateTime last_used: DateTime concurrency_limit: Int concurrency_used: Int
  memory_used: BigInt cpu_used: Float gpus_used: Int rate_limit: Int num_queries: BigInt vfolders: [VirtualFolder]
  compute_sessions(status: String, limit: Int): [ComputeSession] projects: [String] modified_at: DateTime
  ssh_public_key: String ssh_private_key: String dotfiles: String bootstrap_script: String
}}
type KeyPairUsage {{
  access_key: String user_id: String kernels: Int wall_time: Float cpu_used: Float mem_max_bytes: BigInt
  net_rx_bytes: BigInt net_tx_bytes: BigInt io_read_bytes: BigInt io_write_bytes: BigInt
}}
"""
_USER = """
type Query {
  keypair: KeyPair
  vfolders: [VirtualFolder]
  vfolder_list(limit: Int!, offset: Int!, group_id: UUID, access_key: String, filter: String, order: String):
    VirtualFolderList
  vfolder_own_list(limit: Int!, offset: Int!, filter: String, order: String): VirtualFolderList
  vfolder_invited_list(limit: Int!, offset: Int!, filter: String, order: String): VirtualFolderList
  vfolder_project_list(limit: Int!, offset: Int!, filter: String, order: String): VirtualFolderList
  images(is_operation: Boolean): [Image]
  compute_session(sess_id: String): ComputeSession
  compute_sessions(status: String, limit: Int, offset: Int): [ComputeSession]
  compute_session_list(limit: Int!, offset: Int!, status: String, access_key: String, filter: String, order: String):
    ComputeSessionList
  compute_workers(sess_id: String!, status: String): [ComputeWorker]
  usage(since: DateTime!, until: DateTime!, access_key: String, limit: Int, offset: Int): [KeyPairUsage]
}
"""
_ADMIN = """
type Agent {
  id: ID status: String region: String scaling_group: String addr: String isolation: String
  mem_slots: Int cpu_slots: Int gpu_slots: Int used_mem_slots: Int used_cpu_slots: Int used_gpu_slots: Int
  available_slots: JSONString occupied_slots: JSONString cpu_cur_pct: Float mem_cur_bytes: BigInt
  hardware_metadata: JSONString live_stat: JSONString
  status_changed: DateTime architecture: String version: String compute_plugins: JSONString
  local_config: JSONString compute_containers: [ComputeContainer]
  kernels: Int max_kernels: Int load: Float labels: [String!] schedulable: Boolean
  drained_since: DateTime drain_deadline: DateTime
  first_contact: DateTime lost_at: DateTime computations(status: String, limit: Int): [ComputeSession]
}
type AgentList { items: [Agent] total_count: Int }
type PlacementJudgement { agent: String place: Int load: Float reasons: [String!] }
type KeyPairList { items: [KeyPair] total_count: Int }
type ResourcePolicy {
  name: String max_kernels: Int cpu_cores: Float memory: BigInt gpus: Int max_folders: Int max_folder_size: BigInt
  runtimes: [String!] lifetime: Float idle_timeout: Float
}
type Query {
  agent(agent_id: String!): Agent
  agents(status: String, limit: Int, offset: Int): [Agent]
  agent_list(limit: Int!, offset: Int!, status: String, scaling_group: String, filter: String, order: String): AgentList
  explain_placement(runtime: String!, cpu_cores: Float, memory: BigInt, gpus: Int, labels: [String!]): [PlacementJudgement]
  keypair(access_key: String): KeyPair
  keypairs(user_id: UserId, is_active: Boolean, limit: Int, offset: Int): [KeyPair]
  keypair_list(limit: Int!, offset: Int!, is_active: Boolean, domain_name: String, filter: String, order: String): KeyPairList
  vfolders(access_key: String): [VirtualFolder]
  vfolder_list(limit: Int!, offset: Int!, group_id: UUID, access_key: String, filter: String, order: String):
    VirtualFolderList
  vfolder_own_list(limit: Int!, offset: Int!, filter: String, order: String): VirtualFolderList
  vfolder_invited_list(limit: Int!, offset: Int!, filter: String, order: String): VirtualFolderList
  vfolder_project_list(limit: Int!, offset: Int!, filter: String, order: String): VirtualFolderList
  images(is_operation: Boolean): [Image]
  compute_session(sess_id: String): ComputeSession
  compute_sessions(access_key: String, status: String, limit: Int, offset: Int): [ComputeSession]
  compute_session_list(limit: Int!, offset: Int!, status: String, access_key: String, filter: String, order: String):
    ComputeSessionList
  compute_workers(sess_id: String!, status: String): [ComputeWorker]
  resource_policy(name: String!): ResourcePolicy
  resource_policies(limit: Int, offset: Int): [ResourcePolicy]
  usage(since: DateTime!, until: DateTime!, access_key: String, limit: Int, offset: Int): [KeyPairUsage]
}
input KeyPairInput {
  is_active: Boolean is_admin: Boolean resource_policy: String concurrency_limit: Int rate_limit: Int
}
input ModifyKeyPairInput {
  is_active: Boolean is_admin: Boolean resource_policy: String concurrency_limit: Int rate_limit: Int
}
input ResourcePolicyInput {
  max_kernels: Int cpu_cores: Float memory: BigInt gpus: Int max_folders: Int max_folder_size: BigInt
  runtimes: [String!] lifetime: Float idle_timeout: Float
}
type CreateKeyPair { ok: Boolean msg: String keypair: KeyPair }
type Changed { ok: Boolean msg: String }
type Mutation {
  create_keypair(user_id: UserId!, props: KeyPairInput!): CreateKeyPair
  modify_keypair(access_key: String!, props: ModifyKeyPairInput!): Changed
  delete_keypair(access_key: String!): Changed
  put_resource_policy(name: String!, props: ResourcePolicyInput!): Changed
  delete_resource_policy(name: String!): Changed
  drain_agent(agent_id: String!, wait: Float): Changed
  undrain_agent(agent_id: String!): Changed
}
"""
_REMEMBERED = 64


@frozen
class Query:
    """A document with the schema in which it is valid."""

    schema: GraphQLSchema
    document: DocumentNode


@functools.lru_cache(_REMEMBERED)
def read_query(text: str, *, is_admin: bool) -> Query:
    """Read a query in the name of an administrator or of a user; clients send the same few texts again and again.

    :raises InvalidRequest: it is not valid, or too large.
    """
    refused: InvalidRequest | None = None
    for schema in schemas(is_admin=is_admin):
        try:
            return Query(schema, read_document(schema, text))
        except InvalidRequest as error:
            refused = refused or error
    raise refused or InvalidRequest("there is no schema")


@functools.cache
def schemas(*, is_admin: bool) -> tuple[GraphQLSchema, ...]:
    """Give the schemas of a role."""
    if not is_admin:
        return (_schema(_COMMON + _USER),)
    return tuple(_schema(_COMMON + _ADMIN.replace("UserId", kind)) for kind in ("Int", "String"))


def _schema(text: str) -> GraphQLSchema:
    schema = build_schema(text, no_location=True)
    resolvers: Mapping[str, Mapping[str, Callable[..., Any]]] = fields.RESOLVERS
    for name, of_type in resolvers.items():
        declared = schema.get_type(name)
        if isinstance(declared, GraphQLObjectType):
            for field, resolve in of_type.items():
                # A user's root lacks some fields of an administrator's.
                if field in declared.fields:
                    declared.fields[field].resolve = resolve
    return schema
